"""The learning rate over the steps."""

from __future__ import annotations

import pytest

from megatron_lwz.config import validate
from megatron_lwz.training.optimizer import Schedule


def rates(schedule: str, *, warmup: int = 2, steps: int = 6, **more: float) -> list[float]:
    section = {"lr": 1.0, "min_lr": 0.1, "warmup_steps": warmup, "schedule": schedule} | more
    lr = Schedule(validate({"training": {"steps": steps}, "optimizer": section})).lr
    return [lr(step) for step in range(steps + 2)]


def test_constant_stays_after_the_warm_up() -> None:
    assert rates("constant") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_linear_decays_to_the_minimum_and_stays() -> None:
    assert rates("linear") == pytest.approx([0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1])


def test_cosine_is_half_way_in_the_middle() -> None:
    assert rates("cosine") == pytest.approx([0.5, 1.0, 1.0, 0.868198, 0.55, 0.231802, 0.1, 0.1], abs=1e-6)


def test_a_warm_up_longer_than_the_run_never_divides_by_zero() -> None:
    assert rates("cosine", warmup=10, steps=3) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_wsd_is_stable_then_decays_over_the_last_steps() -> None:
    assert rates("wsd", decay_steps=3) == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.7, 0.4, 0.1, 0.1])
    assert rates("wsd", decay_steps=0) == rates("constant")
    assert rates("wsd", decay_steps=60) == pytest.approx(rates("linear"))


def test_warm_up_as_a_share_of_the_steps_rounds_up() -> None:
    assert rates("constant", warmup=0, warmup_fraction=0.4) == pytest.approx([1 / 3, 2 / 3, *[1.0] * 6])
    assert rates("constant", warmup=2, warmup_fraction=0.9) == rates("constant")
    assert rates("constant", warmup=0, warmup_fraction=0.07, steps=100)[6:8] == [1.0, 1.0], (
        "0.07 × 100 is over 7 in floating point"
    )
