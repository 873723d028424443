"""Numbers measured from a run folder whose law is known: simulated, and written as a run writes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_lwz.config import save_config, validate
from megatron_lwz.errors import DataError
from megatron_lwz.metrics import MetricsWriter
from megatron_lwz.planner.simulation.engine import Decoding
from megatron_lwz.planner.simulation.lengths import Drawn, quantile_of
from megatron_lwz.planner.simulation.measure import least_squares, measure
from megatron_lwz.planner.simulation.outcome import simulate
from megatron_lwz.planner.simulation.pool import Engines
from megatron_lwz.planner.simulation.run import Record, Simulation
from megatron_lwz.planner.simulation.setting import Setting, Trainer, WeightSync
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.run_paths import RunPaths
from tests.support import journal_groups

LAW = Drawn(quantile_of("lognormal:60:0.6"), 400, 2, 2, seed=3)
KNOWN = Setting(
    steps=12,
    batch=3,
    engines=Engines(1, 32, Decoding(0.02, 0.001)),
    trainer=Trainer(2e-3, 0.5),
    sync=WeightSync(0.2, 0.1),
    rewards=0.4,
)


def write_run(root: Path, setting: Setting, *, steps: int | None = None, **rollout: Any) -> Record:
    """The folder of a run with this setting, up to `steps`. What later steps would train on is unfinished."""
    record = Simulation(setting, LAW).run()
    paths = RunPaths(root)
    tree = {
        "run": {"dir": str(root)},
        "training": {"steps": setting.steps, "prompts_per_step": setting.batch},
        "grpo": {"group_size": LAW.size},
        "rollout": {"max_staleness": setting.staleness, "concurrency": 32, "max_new_tokens": 400, **rollout},
    }
    root.mkdir()
    save_config(validate(tree), paths.config)
    done = record.steps[:steps]
    with MetricsWriter(root, tensorboard=False) as writer:
        for number, step in enumerate(done, 1):
            seconds = {"rollout": step.waited, "update": step.trained, "weight_sync": step.synced}
            row = {f"seconds/{name}": value for name, value in seconds.items()}
            writer.write(number, row | {"rollout/engines_up": 1.0, "rollout/concurrency_limit": 32.0})
    used = {
        group: (number, at)
        for number, step in enumerate(record.steps, 1)
        for group, at in zip(step.groups, step.admitted, strict=True)
    }
    journal = Journal(paths.journal)
    for number, lengths in record.admitted.items():
        step, admitted = used[number]
        if admitted > len(done) + 1:
            continue
        group = journal_groups.group(number, LAW.size, admitted)
        journal.admit(group)
        for draft, length in zip(group.drafts, lengths.responses, strict=True):
            trained = step <= len(done)
            journal_groups.write(journal, draft, (7,) * (length if trained else 3))
            if trained:
                journal_groups.end(journal, draft)
        if step <= len(done):
            journal.consume([number], step)
    journal.close()
    return record


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
    _, found = measure(tmp_path / "run", load_share=1 / 3)
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
    with pytest.raises(Exception, match=r"config.yaml"):
        measure(tmp_path / "nothing")


def test_least_squares_have_no_negative_number() -> None:
    known = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert least_squares(known, known @ [2.0, 0.5]) == pytest.approx([2.0, 0.5])
    assert least_squares(known, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])
    assert least_squares(known, np.array([-1.0, -1.0, -1.0])) == pytest.approx([0.0, 0.0])
