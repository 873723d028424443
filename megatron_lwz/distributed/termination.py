"""SIGTERM and Ctrl-C: the main thread unwinds, and a watching thread sees to it that the process ends in time.

torchrun passes SIGTERM on to its ranks and kills them after 30 s; Slurm sends it to every process, so a rank may get it
twice. The main thread can be inside a collective, a kernel or a write, where Python delivers no signal: the watching
thread hears of it at once, has what was received made durable, and ends the process if the main thread does not.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 24.0
"""From the signal to the forced end: together with the last attempt below less than torchrun's 30 s."""
LAST_SECONDS = 3.0
"""Patience with a disk before a forced end."""

log = logging.getLogger(__name__)

_keepers: list[Callable[[], None]] = []


class _Notice:
    """The signal that ends this process, and when it came. One per `watched` block."""

    def __init__(self) -> None:
        self.number = 0
        self.since = math.inf
        self.raised = False
        self.over = threading.Event()

    def note(self, number: int) -> None:
        """Remembers the first signal."""
        if not self.number:
            self.number, self.since = number, time.monotonic()


_notice = _Notice()


class Terminated(SystemExit):
    """SIGTERM as an exception, so that `finally` blocks run. asyncio lets a SystemExit through its loop, and no other."""


def requested() -> int:
    """The signal that told this process to end, 0 if none did."""
    return _notice.number


def patience(seconds: float = math.inf, *, reserve: float = 0.0) -> float | None:
    """How long something may still be waited for: `seconds` (None: for ever), or less once the process was told to end.

    `reserve`: seconds that what comes after it needs.
    """
    if _notice.number:
        seconds = min(seconds, max(0.0, _notice.since + GRACE_SECONDS - reserve - time.monotonic()))
    return None if seconds == math.inf else seconds


@contextmanager
def kept(keeper: Callable[[], None]) -> Iterator[None]:
    """Within the block a signal, and a forced end, have `keeper` make durable what was received; from another thread."""
    _keepers.append(keeper)
    try:
        yield
    finally:
        _keepers.remove(keeper)


def keep() -> threading.Thread:
    """Has everything `kept`, in a thread: a disk may hang."""

    def work() -> None:
        for keeper in list(_keepers):
            try:
                keeper()
            except Exception as error:
                log.warning("not everything is durable: %s", error)

    thread = threading.Thread(target=work, name="keep", daemon=True)
    thread.start()
    return thread


@contextmanager
def watched(*, forced: Callable[[], None], until_exit: bool = False) -> Iterator[None]:
    """The first SIGTERM raises Terminated in the main thread, the first SIGINT KeyboardInterrupt; later ones do nothing.

    After GRACE_SECONDS `forced` is called and the process ends with status 128 + signal. With `until_exit` that holds
    beyond the block too, while the interpreter waits for threads. Main thread only.
    """
    global _notice
    _notice = notice = _Notice()

    def hear(number: int, _frame: FrameType | None) -> None:
        notice.note(number)
        if not notice.raised:
            notice.raised = True
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(128 + number)

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        numbers.append(signal.SIGINT)
    previous = {number: signal.signal(number, hear) for number in numbers}
    near, far = os.pipe()
    os.set_blocking(far, False)
    wakeup = signal.set_wakeup_fd(far, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(near, set(numbers), notice, forced), name="signals", daemon=True).start()
    try:
        yield
    finally:
        if not (notice.number and until_exit):
            signal.set_wakeup_fd(wakeup)
            for number, handler in previous.items():
                signal.signal(number, handler)
            notice.over.set()
            os.close(far)  # the thread reads the end of the pipe
            _notice = _Notice()


def _watch(pipe: int, numbers: set[signal.Signals], notice: _Notice, forced: Callable[[], None]) -> None:
    told: list[int] = []
    with open(pipe, "rb", buffering=0) as signals:
        while not told:
            heard = signals.read(64)
            if not heard:
                return
            told = [number for number in heard if number in numbers]
        notice.note(told[0])
        keep()
        if not notice.over.wait(GRACE_SECONDS):
            keep().join(LAST_SECONDS)
            forced()
            os._exit(128 + told[0])
