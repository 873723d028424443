"""A rollout process over one engine, without a run: `python -m tests.unit.orchestrator.host_child FOLDER URL --socket FD`.

One rollout is written into FOLDER/journal.sqlite while it answers.
"""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.distributed import termination
from megatron_lwz.errors import DataError
from megatron_lwz.orchestrator.connection import Connection
from megatron_lwz.orchestrator.service import HostService
from megatron_lwz.rollout.admission import Admission, Intake
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import Prompt, WeightVersion
from tests.support.synthetic_engine import TOKEN, CharTokenizer

OLD = WeightVersion(0, 0, "old")


class Host:
    """What a RolloutHost has that the tests ask for."""

    def __init__(self, engines: EnginePool) -> None:
        self.engines = engines

    def trained(self, step: int) -> None:
        raise DataError("journal.sqlite", f"no room for step {step}")

    def lengths(self, step: int) -> dict[str, float]:
        return {"a": {}["b"]}


def main(folder: Path, url: str, number: int) -> None:
    pool = EnginePool([EngineClient(url, TOKEN)], concurrency=1)
    controller = RolloutController(
        pool,
        Journal(folder / "journal.sqlite"),
        [],
        intake=Intake(lambda place: Prompt("p", "prompt"), 1, 7, Admission(1, 0)),
        tokenizer=CharTokenizer(),
        render=lambda prompt: prompt.text + "|",
        section=RolloutSection(max_new_tokens=100_000, commit_interval=0.05),
    )
    controller.recover(0)
    controller.start()
    pool.set_version(OLD)
    controller.begin(1)
    with ExitStack() as stack, termination.watched(forced=lambda: None), suppress(termination.Terminated):
        stack.callback(controller.close)
        stack.enter_context(termination.kept(lambda: (folder / "kept").touch()))
        HostService(lambda: Host(pool), Connection(socket.socket(fileno=number))).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[4]))
