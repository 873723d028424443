"""A trainer without a model, to be killed: controller and journal, weights pushed after every step, checkpoints every two.

`python -m tests.end_to_end.rollout_trainer FOLDER STEPS STALENESS URL …`; it goes on with what the folder holds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.rollout.admission import Admission, Intake
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import Prompt, WeightVersion
from tests.support.rollouts import LengthOfText
from tests.support.synthetic_engine import TOKEN, CharTokenizer

PROMPTS, GROUP = 4, 4


def main(folder: Path, steps: int, staleness: int, urls: list[str]) -> None:
    """Trains to the last step; appends a line of counters to `lives.jsonl` when it starts and at its end."""
    marker = folder / "checkpoint"
    first = int(marker.read_text()) if marker.exists() else 0
    section = RolloutSection(
        max_new_tokens=100, commit_interval=0.05, concurrency=64, retries=20, pool={"probe_interval": 0.2}
    )
    pool = EnginePool([EngineClient(url, TOKEN) for url in urls], concurrency=64, section=section.pool)
    controller = RolloutController(
        pool,
        Journal(folder / "journal.sqlite"),
        [LengthOfText()],
        intake=Intake(
            lambda place: Prompt(f"p{place}", f"prompt {place}"),
            GROUP,
            7,
            Admission(PROMPTS, staleness, last_step=steps),
        ),
        tokenizer=CharTokenizer(),
        render=lambda prompt: prompt.text + "|",
        section=section,
    )
    note(folder, {"kept": controller.recover(first).kept_tokens})
    controller.start()
    pool.push_weights(folder, WeightVersion(first))
    for step in range(first + 1, steps + 1):
        groups = controller.collect(step)
        controller.mark_consumed(groups, step)
        pool.push_weights(folder, WeightVersion(step))
        controller.settle()
        if step % 2 == 0:
            marker.with_name("new").write_text(str(step))
            marker.with_name("new").rename(marker)
            controller.checkpoint(step)
        note(folder, controller.metrics())
    controller.close()


def note(folder: Path, values: dict[str, float]) -> None:
    """One line in `lives.jsonl`."""
    with (folder / "lives.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
