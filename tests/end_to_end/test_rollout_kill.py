"""kill −9 of the process that holds controller and journal, in the middle of rollouts."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_lwz.rollout.journal import JournalReader
from tests.unit.rollout.synthetic_engine import Engine, background_loop

PROJECT = Path(__file__).parents[2]
STEPS, PROMPTS, GROUP = 3, 4, 4

TRAINER = """
import sys
from pathlib import Path
from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.rollout.admission import Admission, Intake
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import Prompt
from tests.unit.rollout.conftest import LengthOfText
from tests.unit.rollout.synthetic_engine import TOKEN, CharTokenizer

folder, url = Path(sys.argv[1]), sys.argv[2]
steps, prompts, group, staleness = map(int, sys.argv[3:])
marker = folder / "checkpoint"
step = int(marker.read_text()) if marker.exists() else 0
section = RolloutSection(max_new_tokens=100, commit_interval=0.05, concurrency=64)
controller = RolloutController(
    EnginePool([EngineClient(url, TOKEN)], concurrency=section.concurrency),
    Journal(folder / "journal.sqlite"), [LengthOfText()],
    intake=Intake(
        lambda place: Prompt(f"p{place}", f"prompt {place}"), group, 7,
        Admission(prompts, staleness, last_step=steps),
    ),
    tokenizer=CharTokenizer(), render=lambda prompt: prompt.text + "|",
    section=section,
)
kept = controller.recover(step).kept_tokens
with (folder / "kept").open("a") as file:
    print(kept, file=file)
controller.start()
for step in range(step + 1, steps + 1):
    groups = controller.collect(step)
    controller.mark_consumed(groups, step)
    if step % 2 == 0:
        marker.with_name("new").write_text(str(step))
        marker.with_name("new").rename(marker)
        controller.checkpoint(step)
controller.close()
"""


def trainer(folder: Path, url: str, staleness: int) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    arguments = [str(folder), url, str(STEPS), str(PROMPTS), str(GROUP), str(staleness)]
    return subprocess.Popen([sys.executable, "-c", TRAINER, *arguments], cwd=PROJECT)


def written(folder: Path) -> list[tuple]:
    with JournalReader(folder / "journal.sqlite") as reader:
        consumed = reader.consumed()
        return [
            (group.id, group.prompt, consumed[group.id], rollout.tokens, rollout.logprobs, rollout.text)
            for group in reader.groups()
            for rollout in group.rollouts
        ]


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_killed_three_times_trains_on_the_tokens_of_an_undisturbed_one(tmp_path, staleness):
    engine = Engine(length=lambda seed: 30 + seed % 60, delta=2, pause=0.03)
    total = 0
    with background_loop() as start:
        url = start(engine)
        assert trainer(tmp_path / "undisturbed", url, staleness).wait(180) == 0
        total = engine.sent
        draw = random.Random(1)
        for _ in range(3):
            process, until = (
                trainer(tmp_path / "killed", url, staleness),
                engine.sent + draw.randint(total // 8, total // 3),
            )
            while engine.sent < until:
                assert process.poll() is None, "the run ended before it was killed"
                time.sleep(0.002)
            process.kill()
            process.wait()
        assert trainer(tmp_path / "killed", url, staleness).wait(180) == 0
    expected = written(tmp_path / "undisturbed")
    assert len(expected) == STEPS * PROMPTS * GROUP and sum(len(row[3]) for row in expected) == total
    assert written(tmp_path / "killed") == expected
    kept = [int(line) for line in (tmp_path / "killed" / "kept").read_text().split()]
    assert kept[0] == 0 and max(kept) > 0, "unfinished rollouts went on from their durable tokens"
