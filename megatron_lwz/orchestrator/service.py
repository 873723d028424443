"""The rollout process's side: a Host handles the trainer's calls, one after the other."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from queue import SimpleQueue
from typing import Any

from megatron_lwz.config import validate
from megatron_lwz.distributed import termination
from megatron_lwz.errors import EnvironmentSetupError, Interrupted, LwzError, refused_path
from megatron_lwz.orchestrator.connection import Codec, Connection, Message, Tensors, describe_error
from megatron_lwz.orchestrator.host import local_host
from megatron_lwz.orchestrator.protocol import Host, callback_kinds, signatures
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.progress import Progress
from megatron_lwz.run_paths import RunPaths

_SIGNATURES = signatures(Host)


def serve(connection: Connection) -> None:
    """Answers the trainer's calls until SIGTERM, which the end of the trainer also triggers. Raises LwzError.

    When it returns, everything is durable.
    """
    with ExitStack() as stack:

        def open_host(settings: dict[str, Any], step: int) -> Host:
            config = validate(settings)
            return stack.enter_context(local_host(config, RunPaths(config.run.dir), step, service.waiting))

        service = HostService(open_host, connection)
        service.run()


class HostService:
    """Answers the calls of `Host` that arrive over a connection.

    The call `open` creates the host and must come first. `open_host` gets its arguments.
    """

    def __init__(self, open_host: Callable[..., Host], connection: Connection) -> None:
        self._open_host = open_host
        self._connection = connection
        self._codec = Codec({EngineClient: (attrgetter("url"), _refused)})
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._number = -1
        """Number of the call that is being answered."""
        self._interrupted = -1
        """Number of the call whose answer the trainer does not wait for."""
        self._host: Host
        self._streams: dict[str, Iterator[Any]] = {}
        """Name of a call → the iterator that its last call returned."""

    def run(self) -> None:
        """Answers calls until a signal raises here or the other end is closed."""
        threading.Thread(target=self._listen, name="trainer", daemon=True).start()
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                self._answer(self._inbox.get())

    def waiting(self, progress: Progress) -> None:
        """Reports to the trainer the progress of the rollouts that it waits for. Raises Interrupted if it does not wait."""
        if self._interrupted == self._number:
            raise Interrupted("the trainer waits no longer")
        self._connection.send({"number": self._number, "progress": asdict(progress)})

    def _answer(self, message: Message) -> None:
        outer, self._number = self._number, message.content["number"]
        tensors: Tensors = {}
        try:
            method, arguments, result = self._look_up(message)
            content = {"answer": self._codec.encode(method(*arguments), result, tensors)}
        except LwzError as error:
            content = {"error": describe_error(error)}
        except Exception as error:
            shown: LwzError | None = refused_path(error)
            if shown is None:  # our own bug: the trainer ends, and this names the place to look
                traceback.print_exc()
                text = f"rollout process: {type(error).__name__}: {error}; its traceback is above"
                shown = EnvironmentSetupError(text)
            content = {"error": describe_error(shown)}
        finally:
            self._number = outer
        self._connection.send(content | {"number": message.content["number"]}, tensors)

    def _look_up(self, message: Message) -> tuple[Callable[..., Any], list[Any], Any]:
        """Returns the method that a message calls, its arguments, and the type of its result."""
        name = message.content["call"]
        if name == "open":
            return self._open, message.content["arguments"], None
        if name not in _SIGNATURES:
            raise ValueError(f"no call {name!r}")
        signature = _SIGNATURES[name]
        if message.content["following"]:
            return partial(self._following, name), [], signature.following
        method = attrgetter(name)(self._host)
        arguments = [
            partial(self._call_back, kinds)
            if (kinds := callback_kinds(kind)) is not None
            else self._codec.decode(value, kind, message.tensors)
            for value, kind in zip(message.content["arguments"], signature.parameters, strict=True)
        ]
        if signature.streams:
            return partial(self._begin, name, method), arguments, None
        return method, arguments, signature.result

    def _open(self, *arguments: Any) -> None:
        self._host = self._open_host(*arguments)

    def _begin(self, name: str, method: Callable[..., Iterator[Any]], *arguments: Any) -> None:
        self._streams[name] = method(*arguments)

    def _following(self, name: str) -> list[Any]:
        """Returns the next item of a stream, alone in a list; an empty list after the last."""
        return [item for item in (next(self._streams[name], None),) if item is not None]

    def _call_back(self, kinds: list[Any], *values: Any) -> None:
        """Calls a function of the trainer, and answers the trainer's calls meanwhile.

        Raises LwzError if the function fails.
        """
        tensors: Tensors = {}
        asked = [self._codec.encode(value, kind, tensors) for value, kind in zip(values, kinds, strict=True)]
        self._connection.send({"number": self._number, "asked": asked}, tensors)
        while "done" not in (message := self._inbox.get()).content:
            self._answer(message)
        if not message.content["done"]:
            raise LwzError(message.content["why"])

    def _listen(self) -> None:
        try:
            while True:
                message = self._connection.receive()
                if message.content.get("call") == "keep":  # answered at once, even while the main thread waits
                    termination.keep().join()
                    self._connection.send({"number": message.content["number"], "answer": None})
                elif message.content.get("call") == "interrupt":
                    self._interrupted = message.content["number"]
                else:
                    self._inbox.put(message)
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)


def _refused(url: str) -> EngineClient:
    raise ValueError(f"the trainer sends no engine ({url})")
