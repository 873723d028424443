"""SIGTERM to the main job, as torchrun and Slurm send it: all of it ends in time, and nothing that was received is lost."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from tests.support import warm
from tests.support.grpo_runs import ROOT, command, train, variables, write_example
from tests.support.waiting import wait_for

SECONDS = 30.0
"""Within which all processes are gone; torchrun kills its ranks then."""
LINE = "stopped by SIGTERM: the same command goes on from the last checkpoint"


class Run:
    """A running main job, to be told to end."""

    def __init__(self, config: Path, ranks: int) -> None:
        self.folder = config.parent / "run"
        self._output = config.parent / "output"
        self._before = durable(self.folder)
        with self._output.open("wb") as output:
            self._process = warm.Popen(
                command(config, f"parallel.tensor={ranks}", ranks=ranks),
                cwd=ROOT,
                env=variables(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def terminate_when(self, moment: Callable[[Run], bool], *, everybody: bool) -> dict[tuple[int, int], bytes]:
        """Sends SIGTERM to the parent, or to every process (Slurm); checks the end; gives what was durable before."""
        pause = 0.002 if moment == Run.saving else 0.05  # a save is short; to look for tokens reads the whole journal
        wait_for(lambda: moment(self), process=self._process, output=self.said, pause=pause)
        parent = psutil.Process(self._process.pid)
        family = [parent, *parent.children(recursive=True)]
        before = durable(self.folder)
        for member in family if everybody else [parent]:
            member.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family[1:] or family, SECONDS)
        assert not [member for member in alive if member.status() != psutil.STATUS_ZOMBIE]
        psutil.wait_procs([parent], SECONDS)  # torchrun's own end is not ours
        assert parent.returncode  # psutil has taken it from the system: a Popen sees 0
        output = self._output.read_text()
        assert output.count(LINE) == 1, output[-6000:]
        assert "error:" not in output, output[-6000:]
        return before

    def said(self) -> str:
        return self._output.read_text()[-6000:]

    def writing(self) -> bool:
        """Whether rollouts that have begun since the start are unfinished, and have tokens on disk."""
        now = durable(self.folder)
        return any(self._before.get(name) != tokens for name, tokens in now.items()) and unfinished(self.folder) > 0

    def evaluating(self) -> bool:
        """Whether an evaluation has begun since the start."""
        return self.writing() and any((self.folder / "evaluation").glob("step_*.json"))

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.folder / "checkpoints").glob(".step_*.tmp"))


def durable(folder: Path) -> dict[tuple[int, int], bytes]:
    """(group, index) → the tokens of a response that are on disk."""
    found: dict[tuple[int, int], bytes] = {}
    for group, index, tokens in rows(folder, "SELECT group_id, rollout, tokens FROM deltas ORDER BY 1, 2, start"):
        found[group, index] = found.get((group, index), b"") + tokens
    return found


def unfinished(folder: Path) -> int:
    """Rollouts that have tokens and no end."""
    query = "SELECT DISTINCT group_id, rollout FROM deltas EXCEPT SELECT group_id, rollout FROM finished"
    return len(rows(folder, query))


def rows(folder: Path, query: str) -> list[tuple]:
    """Of the journal; none where there is none yet."""
    try:
        with JournalReader(folder / "journal.sqlite") as journal:
            return journal._db.execute(query).fetchall()
    except DataError:
        return []


@pytest.mark.parametrize("controller", ["thread", "process"])
def test_torchrun_is_told_to_end_in_the_middle_of_rollouts(controller: str, tmp_path: Path) -> None:
    config = write_example(
        tmp_path,
        endless=True,
        training={"tokens_per_micro_batch": 32_768},
        rollout={"max_new_tokens": 20_000, "stop": [], "engine_threads": 1, "controller": controller},
    )
    before = Run(config, ranks=2).terminate_when(Run.writing, everybody=False)
    log = tmp_path / "run" / "journal.sqlite-wal"
    assert not log.exists() or log.stat().st_size == 0, "the journal is closed"
    after = durable(tmp_path / "run")
    assert before and all(after[name].startswith(tokens) for name, tokens in before.items())


@pytest.mark.long
@pytest.mark.parametrize("controller", ["thread", "process"])
def test_told_to_end_again_and_again_it_trains_every_group_once(controller: str, tmp_path: Path) -> None:
    steps, draw = 40, random.Random(3)
    config = write_example(
        tmp_path,
        endless=True,
        training={"steps": steps},
        rollout={"max_new_tokens": 400, "stop": [], "engine_threads": 1, "controller": controller},
        evaluation={"concurrent": True, "interval": 4, "samples": 8},
        checkpoint={"interval": 2, "keep": 3},
    )
    moments = [Run.writing, Run.saving, Run.evaluating]
    for number in range(9):
        run = Run(config, ranks=1 + number % 2)
        if number >= 2 * len(moments):  # anywhere: also in updates and weight syncs
            pause = draw.uniform(0, 3)
            moments.append(lambda run, pause=pause: run.writing() and time.sleep(pause) is None)
        before = run.terminate_when(moments[number % len(moments)], everybody=number % 4 > 1)
        after = durable(tmp_path / "run")
        assert all(after[name].startswith(tokens) for name, tokens in before.items())
    train(config, timeout=1200)
    with JournalReader(tmp_path / "run" / "journal.sqlite") as journal:
        consumed = journal.consumed()
        groups = list(journal.groups())
    assert sorted(consumed.values()) == [step for step in range(1, steps + 1) for _ in range(2)]
    assert sorted(consumed) == [group.id for group in groups]
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == list(range(1, steps + 1))
