"""Layouts of two ranks, and of one model each, whose memory is measured."""

from __future__ import annotations

from typing import Any

ARCHITECTURE = {
    "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 2048,
}  # fmt: skip


def tree(
    parallel: dict[str, Any] | None = None, *, recompute: str = "none", tied: bool = False, **architecture: int
) -> dict[str, Any]:
    return {
        "model": {"architecture": ARCHITECTURE | {"tie_word_embeddings": tied} | architecture, "vocab_padding": 8},
        "parallel": (parallel or {}) | {"stall_minutes": 0},
        "data": {"instructions": ["unread.jsonl"]},
        "training": {
            "precision": "fp32", "recompute": recompute, "tokens_per_micro_batch": 2048, "sequence_length": 128,
        },
    }  # fmt: skip


TREES = {
    "data 2": tree(),
    "data 2, tied": tree(tied=True),
    "data 2, recompute full": tree(recompute="full"),
    "data 2, recompute selective": tree(recompute="selective"),
    "data 2, two layers of width 64": tree(num_hidden_layers=2, hidden_size=64, intermediate_size=192),
    "data 2, plain optimizer": tree({"distributed_optimizer": False}),
    "tensor 2, recompute full": tree({"tensor": 2}, recompute="full"),
    "context 2, tied, recompute selective": tree({"context": 2}, recompute="selective", tied=True),
    "tensor 2, sequence parallel": tree({"tensor": 2}),
    "tensor 2": tree({"tensor": 2, "sequence": False}),
    "context 2": tree({"context": 2}),
    "pipeline 2": tree({"pipeline": 2}),
    "pipeline 2, tied": tree({"pipeline": 2}, tied=True),
    "pipeline 2, virtual 2": tree({"pipeline": 2, "virtual_pipeline": 2}),
}
