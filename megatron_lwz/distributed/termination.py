"""Handling of signals. SIGUSR1 asks a run to save and end after its step: it is only noted.

SIGTERM and Ctrl-C: the main thread unwinds, a watcher thread makes sure that the process ends in time.

torchrun passes SIGTERM on to its ranks and kills them after 30 s. Slurm sends it to every process, so a rank may
receive it twice. The main thread can be inside a collective, a kernel or a write, where Python delivers no signal. The
watcher thread receives the signal at once, makes the received tokens durable, and ends the process if the main thread
does not. It also repeats the signal: a wait for a lock ends only by a signal that arrives during the wait, and the first
one may have come just before it, or in another thread.
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
"""Time from the signal to the forced exit. Together with LAST_SECONDS it stays below torchrun's 30 s."""
REMINDER_SECONDS = 1.0
"""Time after which the main thread gets the signal once more, until it raises."""
LAST_SECONDS = 3.0
"""Longest wait for the disk before a forced exit."""

log = logging.getLogger(__name__)

_keepers: list[Callable[[], None]] = []


class _Notice:
    """The signal that ends this process, and the time when it arrived. One per `watched` block."""

    def __init__(self) -> None:
        self.number = 0
        self.since = math.inf
        self.save = False
        self.raised = False
        self.over = threading.Event()
        self._lock = threading.Lock()

    def note(self, number: int) -> None:
        """Records the first signal; later ones are ignored."""
        if not self.number:
            self.number, self.since = number, time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until the forced exit."""
        return max(0.0, self.since + GRACE_SECONDS - time.monotonic())

    def repeat(self) -> None:
        """Sends the signal to the main thread unless that has raised, or the block that handles the signal is left."""
        with self._lock:
            if not (self.raised or self.over.is_set()):
                signal.pthread_kill(threading.main_thread().ident or 0, self.number)

    def end(self) -> None:
        """The block is left. No signal is repeated after this."""
        with self._lock:
            self.over.set()


_notice = _Notice()


class Terminated(SystemExit):
    """SIGTERM as an exception, so that `finally` blocks run.

    A subclass of SystemExit, because asyncio re-raises only that (and KeyboardInterrupt) out of its event loop.
    """


def requested() -> int:
    """Returns the signal that asked this process to end, 0 if there was none."""
    return _notice.number


def save_requested() -> bool:
    """Returns whether SIGUSR1 has asked this process to save and end when it can."""
    return _notice.save


def patience(seconds: float = math.inf, *, reserve: float = 0.0) -> float | None:
    """Returns how many seconds a wait may still last: `seconds`, or less once the process was asked to end.

    None means no limit. `reserve` is the time in seconds that must remain for the steps after the wait.
    """
    if _notice.number:
        seconds = min(seconds, max(0.0, _notice.left - reserve))
    return None if seconds == math.inf else seconds


@contextmanager
def kept(keeper: Callable[[], None]) -> Iterator[None]:
    """Inside the block, a signal and a forced exit call `keeper` from another thread.

    `keeper` makes the data that was received so far durable.
    """
    _keepers.append(keeper)
    try:
        yield
    finally:
        _keepers.remove(keeper)


def keep() -> threading.Thread:
    """Calls every keeper that `kept` registered, in a new thread, because a disk may hang. Returns the thread."""

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
    """Turns the first SIGTERM into Terminated and the first SIGINT into KeyboardInterrupt, both in the main thread.

    Later signals have no effect. GRACE_SECONDS after the first one, `forced` is called and the process exits with
    status 128 + signal. With `until_exit` the limit also holds after the block, while the interpreter waits for
    threads. SIGUSR1 only makes `save_requested` true. Main thread only.
    """
    global _notice
    _notice = notice = _Notice()

    def hear(number: int, _frame: FrameType | None) -> None:
        notice.note(number)
        if not notice.raised:
            notice.raised = True
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(128 + number)

    def note_save(_number: int, _frame: FrameType | None) -> None:
        notice.save = True

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell makes it ignored
        numbers.append(signal.SIGINT)
    previous = {number: signal.signal(number, hear) for number in numbers}
    previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, note_save)
    near, far = os.pipe()
    os.set_blocking(far, False)
    wakeup = signal.set_wakeup_fd(far, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(near, set(numbers), notice, forced), name="signals", daemon=True).start()
    try:
        yield
    finally:
        if not (notice.number and until_exit):
            notice.end()
            signal.set_wakeup_fd(wakeup)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(far)  # the watcher thread then reads the end of the pipe and returns
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
        while notice.left and not notice.over.wait(min(REMINDER_SECONDS, notice.left)):
            notice.repeat()
        if not notice.over.is_set():
            keep().join(LAST_SECONDS)
            forced()
            os._exit(128 + told[0])
