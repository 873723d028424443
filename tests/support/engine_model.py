"""A tiny Qwen2.5 folder to serve: random biases and norm weights, byte-level tokenizer, largest logit around 10."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.support.tiny_qwen2 import write_tiny_qwen2

NORM, HEAD = "model.norm.weight", "lm_head.weight"
VOCAB = 320
EOS = VOCAB - 1
SPECIAL = ("<|user|>", "<|endoftext|>")
"""Ids 318 and 319; 256 … 317 are written out as `w256` …, 0 … 255 are single bytes."""


def write_engine_model(
    folder: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2, vocab: int = VOCAB, max_length: int = 16384,
    tied: bool = False, **changes: Any,
) -> Any:  # fmt: skip
    """Writes the folder; returns transformers' model. `changes` are further keys of its config."""
    model = write_tiny_qwen2(
        folder, seed=seed, vocab_size=vocab, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=max_length,
        initializer_range=2.0 / hidden**0.5, bos_token_id=None, eos_token_id=vocab - 1,
        tie_word_embeddings=tied, **changes,
    )  # fmt: skip
    _write_tokenizer(folder, vocab)
    return model


def write_changed(source: Path, folder: Path, *changes: tuple[str, float]) -> Path:
    """Copies a model's folder, with tensors multiplied by numbers (NaN and infinity too): (tensor, number)."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    for name, factor in changes:
        weights[name] = weights[name] * factor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _write_tokenizer(folder: Path, vocab: int) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(f"w{place}") for place in range(256, vocab - len(SPECIAL))])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL[-1]}), encoding="utf-8")
