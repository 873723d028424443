"""A GRPO update does not depend on the layout, whatever the loss's options; nor on who wrote the loss."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from tests.distributed.checks_grpo import OPTIONS, SAME, check_loss_function
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
def measured() -> dict[str, list[dict[str, Any]]]:
    """What every rank found, on one and on two ranks."""
    target = "tests.distributed.checks_grpo:updates_and_loss_functions"
    return {
        name: run_ranks(target, ranks=ranks, layouts=layouts)
        for name, ranks, layouts in (("one", 1, {"one": {}}), ("two", 2, LAYOUTS))
    }


@pytest.fixture(scope="module")
def one_rank(measured) -> dict[str, list[dict[str, float]]]:
    return measured["one"][0]["updates"]


@pytest.fixture(scope="module")
def two_ranks(measured) -> dict[str, list[dict[str, float]]]:
    found = [rank["updates"] for rank in measured["two"]]
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


@pytest.mark.parametrize("path", SAME)
@pytest.mark.parametrize("layout", ["one", *LAYOUTS])
def test_a_loss_function_of_the_users_own_is_the_built_in_one(measured, layout: str, path: str) -> None:
    for rank in measured["one" if layout == "one" else "two"]:
        check_loss_function(rank["loss_functions"][f"{layout}/{path}"], path)


def test_metrics_of_a_loss_function_come_back(measured) -> None:
    own = {path.partition(":")[2]: measured["two"][1]["loss_functions"][f"cp2/{path}"]["own"] for path in SAME}
    assert own == {"cispo": 1, "sequence_cispo": 0, "gspo_through_the_mean": 1}


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("layout", ["one", "tp2", "vpp2", "cp2", "dp2"])
def test_an_update_that_is_not_finite_changes_nothing_and_names_its_rollouts(measured, layout: str, kind: str) -> None:
    ranks = [rank["faults"][f"{layout}/{kind}"] for rank in measured["one" if layout == "one" else "two"]]
    assert all(repr(rank) == repr(ranks[0]) for rank in ranks), "every rank decides and says the same"
    first, second = ranks[0]["rows"]
    assert not math.isfinite(first["grad_norm"]) and math.isfinite(second["grad_norm"] + second["loss"])
    assert math.isfinite(first["loss"]) == (kind == "gradient")
    assert ranks[0]["same"] and ranks[0]["moved"] and ranks[0]["saves"]
    told = ranks[0]["told"]
    assert re.match(r"step 1: loss .*, gradient norm (nan|inf): not finite; ", told), told
    what = "loss or log-probs" if kind == "loss" else "gradient"
    named = re.search(rf"; {what} of rank [01], micro-batch \d+ of \d+: rollouts (.*); skipped \(1 of 5 ", told)
    assert named and "1-3" in named[1].split(", ") and "1-1" not in named[1] and len(named[1].split(", ")) < 5, told
    assert ranks[0]["state"]["updates"]["skipped"] == 1
