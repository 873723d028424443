"""A run that is told to end in time leaves a checkpoint of its last step, and goes on exactly there.

Also while it waits for rollouts, on one rank and on two, where torchrun would start it again.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from megatron_lwz.metrics import read_metrics
from megatron_lwz.run_paths import RunPaths, step_of
from tests.support.chaos import family
from tests.support.chaos.bench import Bench
from tests.support.chaos.control import HOLDING
from tests.support.chaos.evidence import compare
from tests.support.grpo_runs import command
from tests.support.paths import ROOT
from tests.support.stages import rows_of, variables
from tests.support.synthetic_engine import TOKEN
from tests.support.waiting import wait_for


def steps_written(run: Path) -> int:
    metrics = RunPaths(run).metrics
    return len(read_metrics(metrics)) if metrics.exists() else 0


def waits(run: Path) -> bool:
    """Whether the run waits for rollouts of the step after the last one that is written."""
    done = "(SELECT count(*) FROM finished WHERE group_id = groups.id)"
    question = f"SELECT count(*) FROM groups WHERE admitted = {steps_written(run) + 1} AND {done} < size"
    with closing(sqlite3.connect(f"{RunPaths(run).journal.as_uri()}?mode=ro", uri=True)) as journal:
        return journal.execute(question).fetchone()[0] > 0


def starts_of(run: Path) -> int:
    return len(RunPaths(run).attempts.read_text().splitlines())


def saved(run: Path, output: Path, why: str) -> int:
    """The step of the newest checkpoint, which must be the last one that was trained; the one line that says so."""
    step = step_of(RunPaths(run).latest.read_text())
    assert step == steps_written(run)
    said = output.read_text()
    assert said.count(f"saved and stopped after step {step} of 5 ({why}): the same command goes on") == 1, said
    assert not [line for line in said.splitlines() if line.startswith("error")], (
        said
    )  # torchrun's lines name errors, too
    assert not RunPaths(run).summary.exists()
    return step


def test_a_run_ends_before_its_deadline_and_after_a_signal_and_goes_on_exactly(tmp_path: Path) -> None:
    run, said = tmp_path / "bench" / "run", tmp_path / "said"
    with Bench(tmp_path / "bench", steps=5, sections={"checkpoint": {"interval": 10, "keep": 10}}) as bench:
        undisturbed, _ = bench.undisturbed(1)
        bench.board.engines(HOLDING)  # no step will come to its end
        assert bench.start(run, said, more=["run.must_save_by=9s"]).wait(300) == 75
        assert "stopped with its rollouts kept, before step 1 of 5 (run.must_save_by = 9s)" in said.read_text()
        assert steps_written(run) == 0 and not RunPaths(run).latest.exists()
        bench.board.calm()
        while not RunPaths(
            run
        ).latest.exists():  # no time for two first saves: after the first step, if it is that fast
            assert bench.start(run, said, more=["run.must_save_by=119s"]).wait(300) == 75
        assert saved(run, said, "run.must_save_by = 119s") == 1
        job = bench.start(run, said)
        wait_for(lambda: steps_written(run) == 2, seconds=300, process=job)
        rank = family.with_role(family.members(job), "rank 0")
        assert rank is not None
        rank.send_signal(signal.SIGUSR1)
        assert job.wait(300) == 75
        done = saved(run, said, "SIGUSR1")
        rows, expected = rows_of(run), rows_of(undisturbed)
        assert all(
            row[name] == other[name]
            for row, other in zip(rows, expected, strict=False)
            for name in ("loss", "grad_norm")
        )
        assert len(rows) == done < 5
        bench.board.engines(HOLDING)
        starts, job = starts_of(run), bench.start(run, said, ranks=2, restarts=2)
        wait_for(lambda: starts_of(run) == starts + 1, seconds=300, process=job)
        wait_for(lambda: waits(run), seconds=300, process=job)
        done = steps_written(run)  # a step whose rollouts were complete in the journal has been trained meanwhile
        rank = family.with_role(family.members(job), "rank 1")  # not the one that talks to the engines
        assert rank is not None
        rank.send_signal(signal.SIGUSR1)
        assert job.wait(300) == 0, "torchrun must not start the ranks again"
        assert saved(run, said, "SIGUSR1") == done and starts_of(run) == starts + 1
        bench.board.calm()
        assert bench.start(run, said, ranks=2).wait(300) == 0
        assert not compare(run, undisturbed, exactly=False), (
            "the same rollouts and steps, and losses as the layouts allow"
        )


@pytest.mark.long
def test_slurm_s_signal_to_every_process_under_torchrun(tmp_path: Path) -> None:
    """As examples/longwriter_zero_32b_64xh100/cluster.sh starts it: what ignores the signal at its start is not ended by it."""
    run, said = tmp_path / "bench" / "run", tmp_path / "said"
    with Bench(tmp_path / "bench", steps=5, sections={"checkpoint": {"interval": 10}}) as bench:
        line = command(bench.config, f"run.dir={run}", "parallel.tensor=2", ranks=2)
        with said.open("wb") as stream:
            job = subprocess.Popen(
                ["bash", "-c", "trap '' USR1; exec \"$@\"", "bash", *line], cwd=ROOT, stdout=stream, stderr=stream,
                env=variables() | {"LWZ_ENGINE_TOKEN": TOKEN, "LWZ_REWARD_TOKEN": TOKEN}, start_new_session=True,
            )  # fmt: skip
        assert job.args[0] == "bash" and sys.executable in line
        wait_for(lambda: steps_written(run) == 1, seconds=600, process=job)
        for member in family.members(job):
            member.send_signal(signal.SIGUSR1)
        assert job.wait(300) == 1  # torchrun's
        saved(run, said, "SIGUSR1")
