"""The trainer's side of a rollout process: sends calls over a socket and receives the answers.

The process ends with the trainer.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from typing import Any

from megatron_lwz.distributed import environment, termination
from megatron_lwz.errors import EnvironmentSetupError, Interrupted
from megatron_lwz.http.orphan import dying_with_us
from megatron_lwz.orchestrator.connection import Connection, Message, Tensors, error_from
from megatron_lwz.orchestrator.protocol import Waiting
from megatron_lwz.rollout.progress import Progress

CLOSE_SECONDS = 60.0
"""Seconds to wait for a process to end its engines. The wait is shorter once the trainer was told to terminate."""

log = logging.getLogger(__name__)

Asked = Callable[[Message], None]
"""Handles a request that the process sends before it can answer."""


class HostProcess:
    """The process and its pending calls, each in the thread that made it. Must be started from the main thread.

    `arguments` are Python's; `--socket` and the number of an inherited socket follow them. `waiting` is called with the
    progress of awaited rollouts.
    """

    def __init__(self, arguments: Sequence[str], waiting: Waiting | None = None) -> None:
        self._waiting = waiting
        near, far = socket.socketpair()
        self._child = subprocess.Popen(
            dying_with_us([sys.executable, *arguments, "--socket", str(far.fileno())]),
            env=environment.child_environment(OMP_NUM_THREADS="1"),
            stdin=subprocess.DEVNULL,
            pass_fds=[far.fileno()],
            start_new_session=True,  # ^C must reach only the trainer, which ends the process after unwinding
        )
        far.close()
        self._connection = Connection(near)
        self._numbers = count()
        self._lock = threading.Lock()
        self._calls: dict[int, SimpleQueue[Message | None]] = {}
        self._gone = False
        self._parting: list[str] | None = None
        self._listener = threading.Thread(target=self._listen, name="rollout process", daemon=True)
        self._listener.start()

    def call(
        self,
        name: str,
        arguments: Sequence[Any] = (),
        tensors: Tensors | None = None,
        *,
        following: bool = False,
        asked: Asked | None = None,
    ) -> Message:
        """Calls `name` in the process and returns the message with the answer.

        `following` requests the next item of what the call returned before. While waiting, progress is passed on, and
        `asked` is called with the requests that the process makes before it can answer. Raises the LwzError that the
        call raised in the process, or EnvironmentSetupError if the process ends or fails. When `waiting` raises
        Interrupted, the process is told so, and raises it from the call.
        """
        number = next(self._numbers)
        with self._lock:
            inbox = self._calls[number] = SimpleQueue()
            if self._gone:
                inbox.put(None)
        try:
            content = {"number": number, "call": name, "arguments": list(arguments), "following": following}
            with suppress(OSError):  # the listener notices that the process is gone
                self._connection.send(content, tensors)
            while True:
                message = inbox.get()
                if message is None:
                    raise EnvironmentSetupError(self._last_words())
                if "progress" in message.content:
                    self._pass_on(Progress(**message.content["progress"]), number)
                elif "asked" in message.content:
                    assert asked is not None
                    self._do(asked, message)
                elif "error" in message.content:
                    raise error_from(message.content["error"])
                else:
                    return message
        finally:
            with self._lock:
                del self._calls[number]

    def _pass_on(self, progress: Progress, number: int) -> None:
        try:
            if self._waiting is not None:
                self._waiting(progress)
        except Interrupted:
            with suppress(OSError):
                self._connection.send({"number": number, "call": "interrupt"})

    def keep(self) -> None:
        """Returns when everything received is durable. A process that has ended has already made it durable."""
        with suppress(EnvironmentSetupError):
            self.call("keep")

    def close(self) -> None:
        """Ends the process, with everything durable, and waits for it. Raises the error that occurred at its end."""
        ended = self._child.poll() is not None
        self._child.terminate()
        try:
            self._child.wait(termination.patience(CLOSE_SECONDS, reserve=2.0))
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._listener.join()
        self._connection.close()
        if self._parting is not None:
            raise error_from(self._parting)
        if self._child.returncode and not ended:
            log.warning("the rollout process did not end in order (status %d)", self._child.returncode)

    def _do(self, asked: Asked, message: Message) -> None:
        """Handles a request of the process and reports the result to it. Raises a failure here after reporting it."""
        done = {"done": False, "why": "interrupted"}
        try:
            asked(message)
            done = {"done": True}
        except BaseException as error:
            done["why"] = str(error)
            raise
        finally:
            with suppress(OSError):
                self._connection.send(done)

    def _listen(self) -> None:
        with suppress(EOFError):
            while True:
                message = self._connection.receive()
                if "parting" in message.content:
                    self._parting = message.content["parting"]
                elif (inbox := self._calls.get(message.content["number"])) is not None:
                    inbox.put(message)
        with self._lock:
            self._gone = True
            for inbox in self._calls.values():
                inbox.put(None)

    def _last_words(self) -> str:
        """Returns the reason why there is no answer."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(5.0)
        return (
            f"the rollout process (rollout.controller: process) ended with status {self._child.returncode}: "
            "see what it said above; the same command goes on, rollouts from their last token"
        )
