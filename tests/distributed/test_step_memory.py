"""Ranks that cannot fit a step in their machines' memory end together, and what is refused never fits."""

from __future__ import annotations

import pytest

from tests.support.peak_layouts import TREES
from tests.support.ranks import run_ranks


def test_all_ranks_end_with_the_line_of_the_machine_without_room() -> None:
    first, second = run_ranks("tests.distributed.checks_step_memory:refused", ranks=2)
    assert first == second and "its 2 ranks need at least" in first["said"] and "0.0 GiB are free" in first["said"]
    assert first["loss"] > 0


@pytest.mark.long
def test_what_is_surely_needed_is_never_more_than_what_a_step_takes() -> None:
    for rank in run_ranks("tests.distributed.checks_step_memory:bound", ranks=2, layouts=TREES):
        assert {name: share for name, share in rank.items() if not 0.1 < share < 1.0} == {}
