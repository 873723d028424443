"""A campaign of kill −9 on the main job: whenever it dies, it goes on where it was (make test-long)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal import JournalReader
from tests.end_to_end.grpo_runs import ROOT, command, train, variables, write_example

pytestmark = pytest.mark.long

KILLS = 10
STEPS = 60
STARTING = 15.0
"""Seconds until a run has its engine; kills come up to this much later, so most of them hit rollouts or updates."""


def test_every_group_is_trained_exactly_once_whatever_dies(tmp_path: Path) -> None:
    config = write_example(tmp_path, training={"steps": STEPS}, rollout={"max_new_tokens": 400})
    moment = random.Random(7)
    for _ in range(KILLS):
        process = subprocess.Popen(command(config), cwd=ROOT, env=variables(), start_new_session=True)
        time.sleep(STARTING + moment.uniform(0, STARTING))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    train(config, timeout=1200)
    with JournalReader(tmp_path / "run" / "journal.sqlite") as journal:
        consumed = journal.consumed()
        groups = list(journal.groups())
    assert sorted(consumed.values()) == [step for step in range(1, STEPS + 1) for _ in range(2)]
    assert sorted(consumed) == [group.id for group in groups]
    assert all(len(r.tokens) == len(r.logprobs) > 0 for group in groups for r in group.rollouts)
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == list(range(1, STEPS + 1))
