"""How near the peaks of a dry run are to those of real ranks on a CPU, by layout. Run with -s, it prints the table."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_lwz.config import validate
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.planner.dry_run import RankKind, case_of, run_cases
from megatron_lwz.rehearsal import shim
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.long

RANKS = 2
WITHIN = 0.03
FURTHER = {"pipeline 2, virtual 2": 0.04}
"""Layouts that are further off: the first stage of interleaved pipelines receives while it still sends."""
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


def test_the_peak_of_the_update_is_near_that_of_real_ranks() -> None:
    try:
        shim.build()
    except EnvironmentSetupError as error:
        pytest.skip(str(error))
    measured = run_ranks("tests.distributed.checks_dry_run:measured", ranks=RANKS, trees=TREES, stage="sft")
    ranks = [(name, rank) for name in TREES for rank in range(RANKS) if rank == 0 or "pipeline" in name]
    kinds = [RankKind(rank, RANKS, rank) if "pipeline" in name else RankKind(0, 1, rank) for name, rank in ranks]
    cases = [case_of(validate(TREES[name]), "sft", RANKS, kind) for (name, _), kind in zip(ranks, kinds, strict=True)]
    wrong = []
    for (name, rank), plan in zip(ranks, run_cases(kinds, cases), strict=True):
        found = measured[rank][name]
        ratios = {instant: found["instants"][instant] / size for instant, size in plan.instants.items()}
        print(f"{name}, rank {rank}: " + ", ".join(f"{instant} {ratio:.4f}" for instant, ratio in ratios.items()))
        assert found["state"] == plan.report.state, (name, rank)
        if abs(ratios["update"] - 1) > FURTHER.get(name, WITHIN):
            wrong.append((name, rank, ratios["update"]))
    assert wrong == []
