"""One and two layers tell what more layers need: state and transfers to the byte, peaks up to the allocator's blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_lwz.config import validate
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.planner.dry_run import RankKind, case_of
from megatron_lwz.planner.extrapolate import extended, fewer, layers_per_chunk, shortened
from megatron_lwz.rehearsal import shim
from megatron_lwz.rehearsal.case import Case, Report
from megatron_lwz.rehearsal.ledger import BLOCK
from megatron_lwz.rehearsal.pool import rehearse

LAYERS = 4


def make(name: str, kind: RankKind, world: int, parallel: dict, training: dict) -> Case:
    arch = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
    config = {
        "model": {"architecture": {**arch, "vocab_size": 1024, "num_hidden_layers": LAYERS * kind.stages}},
        "parallel": parallel,
        "training": {"tokens_per_micro_batch": 512, **training},
        "data": {"max_prompt_tokens": 32},
        "rollout": {"max_new_tokens": 400},
    }
    return replace(case_of(validate(config), "grpo", world, kind), name=name)


CASES = [
    make("selective", RankKind(0, 1, 0), 2, {"tensor": 2}, {"recompute": "selective"}),
    make("full", RankKind(0, 1, 0), 8, {"tensor": 2, "context": 2}, {"recompute": "full"}),
    make("last", RankKind(1, 2, 2), 4, {"pipeline": 2}, {"recompute": "full"}),
]
ROUNDING = 16 * BLOCK
"""Bytes: the shares of an optimizer that is split over ranks do not end at whole blocks of the allocator."""


MIDDLE = make("middle", RankKind(2, 4, 4), 8, {"pipeline": 4, "tensor": 2}, {})
MORE = replace(MIDDLE, micro_batches=6)


@pytest.fixture(scope="module")
def reports() -> dict[str, tuple[Report, Report]]:
    try:
        shim.build()
    except EnvironmentSetupError as error:
        pytest.skip(str(error))
    found = rehearse([*(part for case in CASES for part in (case, *fewer(case))), *map(shortest, (MIDDLE, MORE))])
    made = {case.name: (next(found), extended(case, [next(found) for _ in fewer(case)])) for case in CASES}
    return {**made, "packs": (next(found), next(found))}


def shortest(case: Case) -> Case:
    return shortened(case, 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_and_two_layers_tell_what_more_need(reports, case: Case) -> None:
    whole, extrapolated = reports[case.name]
    assert layers_per_chunk(case) == LAYERS and whole.error is None, whole.detail
    for name in ("parameters", "state", "launches", "micro_batches"):
        assert getattr(extrapolated, name) == getattr(whole, name), name
    assert set(extrapolated.transfers) == set(whole.transfers)
    assert extrapolated.peaks == pytest.approx(whole.peaks, rel=0, abs=ROUNDING if case.world > 2 else 0)


def test_further_packs_need_no_further_memory_on_a_pipeline_stage(reports) -> None:
    fewest, more = reports["packs"]
    assert fewest.error is None and (fewest.micro_batches, more.micro_batches) == (3, 6), fewest.detail
    assert fewest.peaks == more.peaks
