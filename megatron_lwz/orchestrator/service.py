"""The rollout process's side: a RolloutHost that does what the trainer asks for, one call after the other."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from megatron_lwz.config import Config
from megatron_lwz.distributed import termination
from megatron_lwz.errors import EnvironmentSetupError, LwzError
from megatron_lwz.evaluation.in_loop import Metrics
from megatron_lwz.orchestrator.connection import Connection, Message, describe_error
from megatron_lwz.orchestrator.experience import Experience
from megatron_lwz.orchestrator.host import RolloutHost, local_host
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.progress import Progress
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import WeightVersion


def serve(config: Config, step: int, connection: Connection) -> None:
    """Until SIGTERM, which the end of the trainer sends too. Leaves with everything durable. Raises LwzError."""
    with ExitStack() as stack:
        HostService(config, step, connection, stack).run()


class HostService:
    """Its methods without an underscore are the calls. `stack` holds what is opened."""

    def __init__(self, config: Config, step: int, connection: Connection, stack: ExitStack) -> None:
        self._config, self._step = config, step
        self._connection = connection
        self._stack = stack
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._number = -1
        """Of the call that is being answered."""
        self._host: RolloutHost
        self._parts: Iterator[Experience]
        self._evaluated: Iterator[tuple[int, Metrics]]

    def run(self) -> None:
        """Answers, until a signal is raised here or nobody listens."""
        threading.Thread(target=self._listen, name="trainer", daemon=True).start()
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                self._answer(self._inbox.get().content)

    def open(self) -> None:
        """Reads prompts and starts what rewards need."""
        run = RunPaths(self._config.run.dir)
        self._host = self._stack.enter_context(local_host(self._config, run, self._step, self._waiting))

    def connect(self, version: str, folder: str) -> None:
        """Connects for good."""
        self._stack.enter_context(self._host.connected(WeightVersion.parse(version), Path(folder)))

    def set_version(self, version: str) -> None:
        """See RolloutHost, as with all calls that have its names."""
        self._host.set_version(WeightVersion.parse(version))

    def experience(self, step: int) -> None:
        """Begins; `next_part` gives."""
        self._parts = self._host.experience(step)

    def next_part(self) -> Experience:
        """Waits for it."""
        return next(self._parts)

    def trained(self, step: int) -> None:
        """See RolloutHost."""
        self._host.trained(step)

    def settle(self) -> None:
        """See RolloutHost."""
        self._host.settle()

    def checkpointed(self, step: int) -> None:
        """See RolloutHost."""
        self._host.checkpointed(step)

    def lengths(self, step: int) -> Metrics:
        """See RolloutHost."""
        return self._host.lengths(step)

    def take_up_evaluations(self, version: str, folder: str) -> None:
        """See RolloutHost."""
        self._host.take_up_evaluations(WeightVersion.parse(version), Path(folder))

    def evaluate(self, version: str, folder: str) -> None:
        """See RolloutHost."""
        self._host.evaluate(WeightVersion.parse(version), Path(folder))

    def evaluated(self) -> None:
        """Begins; `next_evaluated` gives."""
        self._evaluated = self._host.evaluated()

    def next_evaluated(self) -> dict[str, Any] | None:
        """One evaluation, None after the last. Asking says that the one before is recorded."""
        found = next(self._evaluated, None)
        return None if found is None else {"step": found[0], "metrics": found[1]}

    def finish_evaluations(self) -> None:
        """See RolloutHost."""
        self._host.finish_evaluations()

    def push_weights(self, folder: str, version: str) -> None:
        """See EnginePool."""
        self._host.engines.push_weights(Path(folder), WeightVersion.parse(version))

    def push_together(self, version: str) -> None:
        """See EnginePool; the trainer sends."""
        self._host.engines.push_together(WeightVersion.parse(version), self._have_sent)

    def weight_checksum(self) -> dict[str, str]:
        """See EnginePool."""
        return self._host.engines.weight_checksum()

    def wake(self, part: str) -> None:
        """See EnginePool."""
        self._host.engines.wake(part)

    def sleep(self) -> None:
        """See EnginePool."""
        self._host.engines.sleep()

    def name_weights(self, url: str, version: str) -> None:
        """The engine writes with these weights from now on."""
        self._host.engines.client(url).version = WeightVersion.parse(version)

    def read_up(self, url: str, since: float) -> None:
        """Returns when what the engine, paused at `since`, had sent has been read."""
        asyncio.run(self._host.engines.client(url).tracker.read_up(since))

    def _answer(self, content: dict[str, Any]) -> None:
        outer, self._number = self._number, content["number"]
        told: dict[str, Any]
        tensors: dict[str, Tensor] = {}
        try:
            answer = getattr(self, _checked(content["call"]))(*content["arguments"])
            if isinstance(answer, Experience):
                told, tensors = {"metrics": answer.metrics, "last": answer.last}, vars(answer.batch)
            else:
                told = {"answer": answer}
        except LwzError as error:
            told = {"error": describe_error(error)}
        except Exception as error:  # ours: the trainer ends, and this says where to look
            traceback.print_exc()
            text = f"rollout process: {type(error).__name__}: {error}; its traceback is above"
            told = {"error": describe_error(EnvironmentSetupError(text))}
        finally:
            self._number = outer
        self._connection.send(told | {"number": content["number"]}, tensors)

    def _have_sent(self, clients: Sequence[EngineClient]) -> None:
        """Has the trainer send weights to these engines, and answers what it asks for meanwhile."""
        self._connection.send({"number": self._number, "asked": [client.url for client in clients]})
        while "done" not in (content := self._inbox.get().content):
            self._answer(content)
        if not content["done"]:
            raise LwzError(content["why"])

    def _waiting(self, progress: Progress) -> None:
        self._connection.send({"number": self._number, "progress": asdict(progress)})

    def _listen(self) -> None:
        try:
            while True:
                message = self._connection.receive()
                if message.content.get("call") == "keep":  # at once, whatever the main thread is waiting for
                    termination.keep().join()
                    self._connection.send({"number": message.content["number"], "answer": None})
                else:
                    self._inbox.put(message)
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)


_CALLS = frozenset(name for name in vars(HostService) if not name.startswith("_")) - {"run"}


def _checked(name: str) -> str:
    if name not in _CALLS:
        raise ValueError(f"no call {name!r}")
    return name
