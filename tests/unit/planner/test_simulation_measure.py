"""Numbers measured from a run folder whose law is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_lwz.errors import DataError, LwzError
from megatron_lwz.planner.simulation.engine import Decoding
from megatron_lwz.planner.simulation.measure import least_squares, measure
from megatron_lwz.planner.simulation.outcome import simulate
from megatron_lwz.planner.simulation.pool import Engines
from megatron_lwz.planner.simulation.setting import Trainer, WeightSync
from tests.support.simulated_run import KNOWN, LAW, write_run


def test_a_synchronous_run_gives_back_the_law_that_made_it(tmp_path: Path) -> None:
    write_run(tmp_path / "run", KNOWN)
    _, found = measure(tmp_path / "run")
    assert found.engines.decoding.base == pytest.approx(0.02)
    assert found.engines.decoding.per_stream == pytest.approx(0.001)
    assert (found.engines.count, found.engines.slots) == (1, 32)
    assert found.rewards == pytest.approx(0.4)
    assert (found.trainer.per_token, found.trainer.fixed) == pytest.approx((2e-3, 0.5))
    assert found.sync == pytest.approx(WeightSync(0.15, 0.15)), "half of it with engines on hold, as is assumed"
    assert [found.lengths.group(number) for number in range(36)] == [LAW.group(number) for number in range(36)]
    assert found.lengths.group(36) == LAW.group(0), "used up, it begins again"
    assert "within 0.0%" in found.sources["decoding"]


def test_the_numbers_of_a_synchronous_run_predict_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "run", KNOWN)
    _, found = measure(tmp_path / "run", share=1 / 3)
    for staleness, over in ((1, None), (2, None), (2, 1.0)):
        asked = replace(KNOWN, staleness=staleness, over_sampling=over)
        known = replace(asked, engines=found.engines, trainer=found.trainer, sync=found.sync, rewards=found.rewards)
        assert simulate(known, found.lengths).step_seconds == pytest.approx(simulate(asked, LAW).step_seconds)


def test_a_stale_run_is_fitted_by_its_waits(tmp_path: Path) -> None:
    known = replace(KNOWN, staleness=1, engines=Engines(1, 32, Decoding(0.05)), rewards=0.0, sync=WeightSync(0.0))
    write_run(tmp_path / "run", known)
    _, found = measure(tmp_path / "run")
    assert found.engines.decoding.base == pytest.approx(0.05, rel=0.05)
    assert found.engines.decoding.per_stream == 0 and "waits as long" in found.sources["decoding"]


def test_groups_of_steps_that_are_not_complete_are_left_out_because_only_the_short_ones_are_known(
    tmp_path: Path,
) -> None:
    write_run(tmp_path / "run", KNOWN, steps=8)
    _, found = measure(tmp_path / "run")
    assert "24 groups" in found.sources["lengths"]
    assert found.lengths.group(24) == LAW.group(0)


def test_a_run_that_says_too_little_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "short", KNOWN, steps=3)
    with pytest.raises(DataError, match="has 2 steps after the first; 4 or more are needed"):
        measure(tmp_path / "short")
    idle = replace(KNOWN, staleness=3, trainer=Trainer(1.0))
    write_run(tmp_path / "idle", idle)
    with pytest.raises(DataError, match=r"hardly waited.*--decode-rate"):
        measure(tmp_path / "idle")
    assert measure(tmp_path / "idle", decoding=False)[1].trainer.per_token == pytest.approx(1.0)
    with pytest.raises(LwzError, match=r"config.yaml"):
        measure(tmp_path / "nothing")


def test_least_squares_have_no_negative_number() -> None:
    known = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert least_squares(known, known @ [2.0, 0.5]) == pytest.approx([2.0, 0.5])
    assert least_squares(known, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])
    assert least_squares(known, np.array([-1.0, -1.0, -1.0])) == pytest.approx([0.0, 0.0])
