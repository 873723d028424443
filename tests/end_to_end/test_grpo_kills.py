"""A campaign of kill −9 on the main job and on the engine that it started: whenever they die, it goes on (make test-long)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from tests.support.grpo_runs import ROOT, command, train, variables, write_example
from tests.support.journal_checks import assert_every_token_once, durable_tokens, trained
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long

KILLS = 12
STEPS = 60
TOKENS = 300
STILL = 1e-12
"""A learning rate that moves no weight: what is written then depends on seeds alone, and can be compared."""
MOST_CHANGED = 2
"""Rollouts in which a prefix that was read again may have moved a token: about 1e-6 per token of the later ones."""


class Job:
    """The main job, started again when it was killed."""

    def __init__(self, config: Path, run: Path) -> None:
        self.journal = run / "journal.sqlite"
        self._command = command(config, f"run.dir={run}")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=ROOT, env=variables(), start_new_session=True)

    def wait_for_tokens(self, count: int) -> None:
        """Until so many are durable and an engine is there."""

        def there() -> bool:
            return durable_tokens(self.journal) >= count and self.child("serve_engine") is not None

        assert self._process is not None
        wait_for(there, seconds=600, process=self._process, what=f"{count} tokens and an engine before the kill")

    def child(self, role: str) -> psutil.Process | None:
        """The process of the training engine, or of the controller."""
        assert self._process is not None
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
            return next((child for child in children if f"megatron_lwz.cli.{role}" in child.cmdline()), None)
        except psutil.NoSuchProcess:
            return None

    def kill_engine(self) -> None:
        engine = self.child("serve_engine")
        assert engine is not None
        engine.kill()
        with suppress(psutil.NoSuchProcess):
            engine.wait(60)

    def kill_controller(self) -> None:
        """The run ends by itself then."""
        controller = self.child("rollout_host")
        assert controller is not None and self._process is not None
        controller.kill()
        assert self._process.wait(60) == 2

    def kill(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.mark.parametrize("controller", ["thread", "process"])
def test_every_group_is_trained_exactly_once_whatever_dies(controller: str, tmp_path: Path) -> None:
    config = write_example(
        tmp_path,
        training={"steps": STEPS, "tokens_per_micro_batch": 512},
        rollout={"max_new_tokens": TOKENS, "pool": {"probe_interval": 0.5}, "controller": controller},
        optimizer={"lr": STILL},
        data={"held_out_prompts": None},
    )
    train(config, f"run.dir={tmp_path / 'undisturbed'}", timeout=1200)
    expected = trained(tmp_path / "undisturbed" / "journal.sqlite")
    total, draw = sum(len(row[3]) for row in expected), random.Random(7)
    job = Job(config, tmp_path / "run")
    kills = [job.kill_engine, job.kill, *([job.kill_controller] if controller == "process" else [])]
    job.start()
    try:
        for number in range(KILLS):
            job.wait_for_tokens(int((number + draw.uniform(0.2, 0.8)) / (KILLS + 1) * total))
            time.sleep(draw.uniform(0, 1))  # rollouts, an update, a checkpoint
            kill = kills[number % len(kills)]
            kill()
            if kill != job.kill_engine:
                job.start()
    finally:
        job.kill()
    train(config, f"run.dir={tmp_path / 'run'}", timeout=1200)
    found = trained(job.journal)
    assert_every_token_once(job.journal)
    assert [row[:3] for row in found] == [row[:3] for row in expected], "the same prompts, at the same steps"
    changed = [row[0] for row, other in zip(found, expected, strict=True) if row[3] != other[3]]
    assert len(changed) <= MOST_CHANGED
    with JournalReader(job.journal) as journal:
        consumed = journal.consumed()
    assert sorted(consumed.values()) == [step for step in range(1, STEPS + 1) for _ in range(2)]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert max(row["rollout/total_engine_restarts"] for row in rows) >= 1
