"""The chunk planner stays within its budget and picks what its own model finds fastest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lwz.kernels.linear_logprob.planner import (
    Machine,
    Plan,
    Shape,
    chunk_seconds,
    plan_rows,
    plan_tiles,
    utilisation,
)
from megatron_lwz.units import MIB

CPU, H200 = Machine(), Machine(multiprocessors=132)
POLICY_32B_TP8 = Shape(16384, 5120, 19008)
POLICY_7B = Shape(16384, 3584, 152064)

shapes = st.builds(Shape, rows=st.integers(1, 40000), hidden=st.integers(1, 8192), vocab=st.integers(1, 160000))
budgets = st.integers(1, 2**31)
machines = st.sampled_from([CPU, H200])


@given(shapes, budgets, machines)
def test_whole_rows_fit_the_budget_or_are_one_row(shape, budget, machine):
    plan = plan_rows(shape, budget, machine)
    assert 1 <= plan.rows <= shape.rows and 1 <= plan.columns <= shape.vocab
    assert plan.rows * shape.vocab * 4 <= budget or plan.rows == 1


@given(shapes, budgets, machines)
def test_tiles_fit_the_budget_or_are_as_small_as_they_get(shape, budget, machine):
    plan = plan_tiles(shape, budget, machine)
    assert 1 <= plan.rows <= shape.rows and 1 <= plan.columns <= shape.vocab
    assert plan.rows * plan.columns * 4 <= budget or plan.rows == 1


def test_tiles_do_not_grow_with_the_length():
    cells = [
        plan.rows * plan.columns
        for n in (512, 8192, 131072)
        for plan in [plan_tiles(Shape(n, 896, 151936), 256 * MIB, CPU)]
    ]
    assert max(cells) * 4 <= 16 * MIB


def test_one_tile_covers_a_small_problem():
    assert plan_tiles(Shape(100, 64, 500), 256 * MIB, H200) == Plan(100, 500)


@pytest.mark.parametrize("shape", [POLICY_32B_TP8, POLICY_7B], ids=["32B TP8", "7B"])
@pytest.mark.parametrize("budget", [256, 512, 1024])
def test_no_chunk_near_the_budget_is_modelled_faster(shape, budget):
    plan = plan_rows(shape, budget * MIB, H200)
    limit = min(shape.rows, budget * MIB // (4 * shape.vocab))
    others = [rows for rows in range(128, limit + 1, 128) if rows >= limit * 0.6]
    assert others, "the budget leaves a choice"
    assert chunk_seconds(shape, plan.rows, H200) <= min(chunk_seconds(shape, rows, H200) for rows in others)


def test_waves():
    assert utilisation(128, 256 * 132, H200) == 1.0
    assert utilisation(128, 256 * 133, H200) == pytest.approx(133 / 264)
    assert utilisation(1024, 5120, H200) == pytest.approx(160 / 264)
