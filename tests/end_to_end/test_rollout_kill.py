"""kill −9 of trainer, one engine and all engines in the middle of rollouts: nothing is lost, doubled, skipped or changed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.end_to_end.engine_process import WITHOUT_WEIGHTS, EngineProcess
from tests.end_to_end.rollout_trainer import GROUP, PROMPTS
from tests.support import warm
from tests.support.journal_checks import assert_every_token_once, durable_tokens, inside_rollouts, trained, writers
from tests.support.stages import ROOT, variables
from tests.support.waiting import PATIENCE, wait_for


class Campaign:
    """A run in `folder` with two engines, and somebody who kills its processes and starts them again."""

    def __init__(self, folder: Path, engines: list[EngineProcess], *, steps: int, staleness: int) -> None:
        self.folder, self.engines = folder, engines
        self.journal = folder / "journal.sqlite"
        self._arguments = [str(folder), str(steps), str(staleness), *(engine.url for engine in engines)]
        self._trainer: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    def start(self) -> None:
        """Starts the trainer."""
        command = [sys.executable, "-m", "tests.end_to_end.rollout_trainer", *self._arguments]
        self._trainer = warm.Popen(command, cwd=ROOT, env=variables())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Fails if the run ends before."""
        assert self._trainer is not None
        wait_for(condition, seconds=PATIENCE, process=self._trainer, what="the moment of the kill", pause=0.02)

    def kill(self, victim: str, draw: random.Random) -> None:
        """Kills, and starts again what was killed, engines after up to a second."""
        if victim == "trainer":
            self.close()
            self.start()
            return
        dead = self.engines if victim == "all engines" else [draw.choice(self.engines)]
        for engine in dead:
            engine.kill()
        time.sleep(draw.uniform(0, 1))
        for engine in dead:
            engine.start()
        for engine in dead:
            engine.wait_ready()

    def finish(self) -> None:
        """Waits for the end."""
        assert self._trainer is not None and self._trainer.wait(PATIENCE) == 0

    def close(self) -> None:
        """Kills the trainer if it runs."""
        if self._trainer is not None:
            self._trainer.kill()
            self._trainer.wait()

    def most(self, name: str) -> float:
        """The largest value that a life of the trainer noted under this name."""
        lines = (self.folder / "lives.jsonl").read_text().splitlines()
        return max(json.loads(line).get(name, 0) for line in lines)


@contextmanager
def engines(folder: Path, pause: float) -> Iterator[list[EngineProcess]]:
    """Two engines, each in a process of its own."""
    made = [EngineProcess(folder, f"engine{number}", pause) for number in range(2)]
    try:
        for engine in made:
            engine.start()
        for engine in made:
            engine.wait_ready()
        yield made
    finally:
        for engine in made:
            engine.stop()


def survive(folder: Path, victims: list[str], *, steps: int, staleness: int, pause: float, seed: int) -> None:
    """A run whose processes are killed one after the other, against an undisturbed one."""
    draw = random.Random(seed)
    with engines(folder, pause) as pair:
        undisturbed = Campaign(folder / "undisturbed", pair, steps=steps, staleness=staleness)
        undisturbed.start()
        undisturbed.finish()
        total = durable_tokens(undisturbed.journal)
        killed = Campaign(folder / "killed", pair, steps=steps, staleness=staleness)
        killed.start()
        try:
            for number, victim in enumerate(victims):  # each at a random moment of its share of the run's tokens
                moment = (number + draw.uniform(0.1, 0.9)) / (len(victims) + 0.5) * total
                killed.wait_until(lambda moment=moment: durable_tokens(killed.journal) >= moment)
                killed.wait_until(lambda: inside_rollouts(killed.journal))
                killed.kill(victim, draw)
            killed.finish()
        finally:
            killed.close()
    expected = trained(undisturbed.journal)
    assert len(expected) == steps * PROMPTS * GROUP
    assert [row[0] for row in expected] == [n // GROUP for n in range(len(expected))], "no prompt skipped or repeated"
    assert trained(killed.journal) == expected
    assert durable_tokens(killed.journal) == total
    assert_every_token_once(killed.journal)
    assert not {name for name in writers(killed.journal) if name == WITHOUT_WEIGHTS}
    assert killed.most("kept") > 0, "unfinished rollouts went on from their durable tokens"
    assert killed.most("rollout/total_moved") > 0, "and on another engine"
    assert killed.most("rollout/total_engines_lost") > 0


def test_trainer_one_engine_and_all_engines_die_and_the_run_trains_on_the_same_tokens(tmp_path: Path) -> None:
    survive(tmp_path, ["trainer", "one engine", "all engines"], steps=3, staleness=1, pause=0.04, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("staleness", [0, 2])
def test_a_campaign_of_kills(tmp_path: Path, staleness: int) -> None:
    victims = list(islice(cycle(["one engine", "trainer", "all engines", "trainer"]), 12))
    survive(tmp_path, victims, steps=24, staleness=staleness, pause=0.05, seed=10 + staleness)
