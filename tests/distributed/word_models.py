"""A tiny Qwen2 over a vocabulary of words, with its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.tiny_qwen2 import tiny_qwen2, write_word_tokenizer

WORDS = [f"w{index}" for index in range(92)]
SPECIAL = ["<|user|>", "<|assistant|>", ":", "<answer>", "</answer>"]
POISON = "w91"


def write_models(folder: Path, *, layers: int = 4) -> None:
    for name in ("hf", "poisoned"):
        size = write_word_tokenizer(folder / name, WORDS, SPECIAL)
        model = tiny_qwen2(vocab_size=size, num_hidden_layers=layers, initializer_range=0.2)
        if name == "poisoned":
            with torch.no_grad():
                model.get_input_embeddings().weight[1 + len(SPECIAL) + WORDS.index(POISON)] = float("nan")
        model.save_pretrained(folder / name)
