"""A GRPO update does not depend on the layout, whatever the loss's options."""

from __future__ import annotations

import pytest

from tests.distributed.checks_grpo import OPTIONS
from tests.support.ranks import run_ranks

LAYOUTS = {
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "vpp2": {"pipeline": 2, "virtual_pipeline": 2},
    "cp2": {"context": 2},
    "dp2": {},
}
EXACT = ("clip_fraction_low", "clip_fraction_high", "mismatch/clipped", "trained_tokens")


@pytest.fixture(scope="module")
def one_rank() -> dict[str, list[dict[str, float]]]:
    (found,) = run_ranks("tests.distributed.checks_grpo:updates", ranks=1, layouts={"one": {}})
    return found


@pytest.fixture(scope="module")
def two_ranks() -> dict[str, list[dict[str, float]]]:
    found = run_ranks("tests.distributed.checks_grpo:updates", ranks=2, layouts=LAYOUTS)
    assert found[0] == found[1]  # every rank reports the same
    return found[0]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_grpo_update_is_invariant_to_layout(one_rank, two_ranks, layout: str, option: str) -> None:
    expected, got = one_rank[f"one/{option}"], two_ranks[f"{layout}/{option}"]
    assert len(got) == 4
    for before, after in zip(expected, got, strict=True):
        assert before.keys() == after.keys()
        for name, value in before.items():
            tolerance = 0 if name in EXACT else 2e-4
            assert after[name] == pytest.approx(value, rel=tolerance, abs=tolerance / 10), name


def test_second_update_of_a_batch_is_off_policy_and_the_reference_stays(one_rank) -> None:
    rows = one_rank["one/token"]
    assert rows[0]["ratio/max"] == pytest.approx(1, abs=1e-5)
    assert rows[1]["ratio/max"] > 1.01
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[3]["kl"] > 1e-4
