"""A trainer without a model over the embedded engine, to be killed; it goes on with what its journal holds.

`python -m tests.end_to_end.embedded_trainer MODEL JOURNAL URL TOKEN` collects one batch and ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.rollout.admission import Admission, Intake
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import Prompt
from tests.support.rollouts import LengthOfText

PROMPTS = [Prompt(f"p{i}", f"write {i}") for i in range(4)]
SECTION = RolloutSection(
    max_new_tokens=400, temperature=1.0, commit_interval=0.1, stop=("</answer>",), pool={"probe_interval": 0.2}
)


def started(pool: EnginePool, model: Path, journal: Path) -> RolloutController:
    """A controller that goes on with what the journal holds."""
    made = RolloutController(
        pool,
        Journal(journal),
        [LengthOfText()],
        intake=Intake(lambda place: PROMPTS[place], 4, 3, Admission(len(PROMPTS), 0)),
        tokenizer=Tokenizer(model),
        render=lambda prompt: prompt.text,
        section=SECTION,
    )
    made.recover(0)
    made.start()
    return made


def main(model: Path, journal: Path, url: str, token: str) -> None:
    pool = EnginePool([EngineClient(url, token)], concurrency=16, section=SECTION.pool)
    controller = started(pool, model, journal)
    controller.mark_consumed(controller.collect(1), 1)
    controller.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
