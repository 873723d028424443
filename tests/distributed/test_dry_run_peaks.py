"""How near the peaks of a dry run are to those of real ranks on a CPU, by layout. Run with -s, it prints the table."""

from __future__ import annotations

import pytest

from megatron_lwz.config import validate
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.planner.dry_run import RankKind, case_of, run_cases
from megatron_lwz.rehearsal import shim
from tests.support.peak_layouts import TREES
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.long

RANKS = 2
WITHIN = 0.03
FURTHER = {"pipeline 2, virtual 2": 0.04}
"""Layouts that are further off: the first stage of interleaved pipelines receives while it still sends."""


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
