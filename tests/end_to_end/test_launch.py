"""What `lwz launch` writes runs, is told that its time is over, is killed at the limit, starts again, and resumes.

Slurm is a fake one (tests/support/fake_slurm.py); torchrun, ranks and engines are real, on CPUs. The long tests start the programs
themselves, the short one forks of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_lwz.cli import common, launch
from megatron_lwz.run_paths import RunPaths
from tests.support.fake_slurm import FakeSlurm
from tests.support.grpo_runs import write_example
from tests.support.paths import ROOT
from tests.support.stages import rows_of, variables
from tests.support.waiting import wait_for
from tests.support.warm_programs import warm_programs


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    with warm_programs(tmp_path) as programs:
        yield f"{programs}:{os.environ['PATH']}"


def example(folder: Path, described: dict[str, Any], **sections: Any) -> Path:
    described = {"gpus_per_node": 0, "ranks_per_node": 1, "folder": str(ROOT), **described}
    steps = {"training": {"steps": 500}, "checkpoint": {"interval": 1000, "keep": 2}, "evaluation": {"concurrent": False}}
    return write_example(folder, launch=described, **{**steps, "data": {"held_out_prompts": None}, **sections})


def rendered(target: str, config: Path, *overrides: str) -> Path:
    assert common.run(launch.main, [target, str(config), *overrides]) == 0
    (script,) = (config.parent / "run.launch").glob(f"{target}.*")
    return script


def set_steps(config: Path, steps: int) -> None:
    tree = yaml.safe_load(config.read_text())
    tree["training"]["steps"] = steps
    config.write_text(yaml.safe_dump(tree))


def done(run: Path) -> int:
    """Steps that are written; a line may be half there."""
    metrics = RunPaths(run).metrics
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def starts_of(run: Path) -> int:
    attempts = RunPaths(run).attempts
    return len(attempts.read_text().splitlines()) if attempts.exists() else 0


def test_a_slurm_job_saves_when_warned_is_requeued_is_killed_at_the_limit_and_resumes(tmp_path: Path, path: str) -> None:
    run = tmp_path / "run"
    config = example(tmp_path, {"time": "2h", "signal_before": "10m"})
    script = rendered("slurm", config)
    slurm = FakeSlurm(tmp_path / "slurm", nodes=1)
    slurm.submit(script, variables() | {"PATH": path})
    wait_for(lambda: done(run) or slurm.over, what="the first step", output=slurm.output.read_text)
    slurm.warn()
    wait_for(lambda: slurm.starts == 2 or slurm.over, what="the requeue", output=slurm.output.read_text)
    saved = done(run)
    assert f"saved and stopped after step {saved} of 500 (SIGUSR1)" in slurm.output.read_text()
    wait_for(lambda: done(run) > saved or slurm.over, what="a further step", output=slurm.output.read_text)
    slurm.expire()
    assert slurm.wait() == ["requeued", "timeout"], slurm.output.read_text()
    assert not RunPaths(run).summary.exists() and starts_of(run) == 2
    set_steps(config, saved + 2)
    slurm.submit(script, variables() | {"PATH": path})
    assert slurm.wait() == ["requeued", "timeout", 0], slurm.output.read_text()
    assert [row["step"] for row in rows_of(run)] == list(range(1, saved + 3)) and RunPaths(run).summary.exists()
    assert starts_of(run) == 3
