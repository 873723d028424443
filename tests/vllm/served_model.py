"""A tiny Qwen2.5 whose files disagree on what ends a text, as Qwen2.5's own do, and whose defaults would spoil sampling."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.support.engine_model import VOCAB, write_engine_model

MAX_LENGTH = 2048
CLOSING = 310
"""The token `</answer>` with a line break behind it: a stop string that ends inside its token."""
GENERATION_EOS, TOKENIZER_EOS, USER, CONFIG_EOS = range(VOCAB - 4, VOCAB)
"""Ends named by generation_config.json, by the tokenizer, as a stop string (`<|user|>`), by config.json."""
EOS = (GENERATION_EOS, TOKENIZER_EOS, CONFIG_EOS)
COOL, WARM = 0.5, 2.0
"""Temperatures: one at which the ends are never written, and the highest that vLLM takes, at which they are."""
SHARED = "x" * 300
"""Begins all prompts: more tokens than vLLM's cache keeps in one block."""


def write_served_model(folder: Path, *, seed: int = 0, tied: bool = False) -> Path:
    """Writes the folder; returns it. Models of different seeds differ in their weights only."""
    model = write_engine_model(folder, seed=seed, hidden=256, max_length=MAX_LENGTH, tied=tied)
    with torch.no_grad():
        model.lm_head.weight[[*EOS, USER]] = 0.0
    model.save_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (closing,) = [token for token in tokenizer["added_tokens"] if token["id"] == CLOSING]
    closing["content"] = "</answer>\n"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": f"w{TOKENIZER_EOS}"}), encoding="utf-8")
    defaults = {"max_new_tokens": 48, "repetition_penalty": 1.3, "top_k": 5, "top_p": 0.5, "temperature": 0.3}
    generation = {"eos_token_id": [CONFIG_EOS, GENERATION_EOS], "do_sample": True} | defaults
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder
