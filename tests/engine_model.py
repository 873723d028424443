"""A tiny Qwen2.5 folder to serve: random biases and norm weights, byte-level tokenizer, largest logit around 10."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

VOCAB = 320
EOS = VOCAB - 1
SPECIAL = ("<|user|>", "<|endoftext|>")
"""Ids 318 and 319; 256 … 317 are written out as `w256` …, 0 … 255 are single bytes."""


def write_engine_model(
    folder: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2, vocab: int = VOCAB, max_length: int = 16384
) -> Any:
    """Writes the folder; returns transformers' model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=max_length,
            rms_norm_eps=1e-6,
            initializer_range=2.0 / hidden**0.5,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            bos_token_id=None,
            eos_token_id=vocab - 1,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.normal_(1, 0.2)
    model.save_pretrained(folder)
    _write_tokenizer(folder, vocab)
    return model


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
