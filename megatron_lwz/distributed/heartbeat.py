"""Heartbeats: where every rank's main thread is, so that a run that hangs says which rank waits where.

A thread of each rank writes a `Beat` to the rendezvous store, which torchrun serves (rank 0, where every restart has a
store of its own). When a rank's main thread has not moved for `parallel.stall_minutes`, one rank logs the place of all. A
hang is thus described before the collectives time out, also where NCCL then ends the process without a Python exception.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch.distributed as dist

_LONGEST_PERIOD = 30.0
_BEATS_PER_STALL = 10
_MISSED_BEATS = 4
"""A rank whose newest beat is older than this many periods gives no sign of life."""
_BEHIND_RANK_ZERO = 2
"""Periods that the other ranks wait longer: until then the store has the beats of all that stopped at the same time."""
_STORE_TIMEOUT = timedelta(seconds=20)
_PACKAGE = Path(__file__).resolve().parents[1]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beat:
    """Where a rank's main thread is. `still`: seconds since it came there; `at`: seconds since the epoch, by its clock.

    `waiting` is what it may wait for without limit, for example rollouts; else empty.
    """

    host: str
    pid: int
    place: str
    waiting: str
    still: float
    at: float


class Heartbeat:
    """The thread of one rank. `stall` is in seconds."""

    def __init__(self, store: dist.Store, rank: int, ranks: int, stall: float) -> None:
        self._store, self._rank, self._ranks, self._stall = store, rank, ranks, stall
        self._period = min(_LONGEST_PERIOD, stall / _BEATS_PER_STALL)
        self._patience = stall if rank == 0 else stall + _BEHIND_RANK_ZERO * self._period
        self._seen: tuple[object, ...] = ()
        self._since = time.monotonic()
        self._report_at = self._patience
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether `stop` was called."""
        return self._over.is_set()

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join(_STORE_TIMEOUT.total_seconds())

    def places(self) -> str:
        """Returns where all ranks are, as one text. Ranks at the same place are named together.

        Raises an error of torch.distributed when the store does not answer.
        """
        return described(self._beats(), time.time(), silent_after=_MISSED_BEATS * self._period)

    def _work(self) -> None:
        try:
            while True:
                beat = self._beat()
                self._store.set(_key(self._rank), json.dumps(asdict(beat)))
                if beat.still < self._stall:
                    self._report_at = self._patience
                elif not beat.waiting and beat.still >= self._report_at:
                    self._report_at = 2 * beat.still  # says it again, ever more seldom
                    self._report()
                if self._over.wait(self._period):
                    return
        except (RuntimeError, OSError) as error:  # the store went with torchrun: the collectives fail too, and say so
            _log.debug("no heartbeats any more: %s", error)

    def _beat(self) -> Beat:
        place = _place(sys._current_frames().get(threading.main_thread().ident or 0))
        now, seen = time.monotonic(), (place, _moves, _waiting)
        if seen != self._seen:
            self._seen, self._since = seen, now
        return Beat(socket.gethostname(), os.getpid(), place, _waiting, now - self._since, time.time())

    def _report(self) -> None:
        """Logs the place of all ranks, unless one of them waits for what takes any time: the others wait for it then."""
        beats = self._beats()
        silent_after = _MISSED_BEATS * self._period
        if any(beat.waiting and time.time() - beat.at < silent_after for beat in beats.values()):
            return
        stalled = [rank for rank, beat in beats.items() if beat.still >= self._stall and not beat.waiting]
        able = [rank for rank in stalled if time.time() - beats[rank].at < silent_after]
        if self._rank == min(able, default=self._rank):
            minutes = beats[self._rank].still / 60
            _log.warning(
                "rank %d has not moved for %.3g minutes: %s. Collectives give up after parallel.timeout_minutes",
                self._rank, minutes, described(beats, time.time(), silent_after=silent_after),
            )  # fmt: skip

    def _beats(self) -> dict[int, Beat]:
        found = {}
        for rank in range(self._ranks):
            if self._store.check([_key(rank)]):
                found[rank] = Beat(**json.loads(self._store.get(_key(rank))))
        return found


_moves = 0
_waiting = ""
_own: Heartbeat | None = None
"""Stays when it has ended: an error is reported after the end of the run's parts."""


def start(stall_minutes: float) -> None:
    """Starts this rank's heartbeat, if there are several ranks, `stall_minutes` is above 0 and none runs yet.

    The thread has a connection of its own to the store: a main thread that waits for the store holds the other one.
    """
    global _own
    if (_own is None or _own.ended) and stall_minutes > 0 and dist.get_world_size() > 1:
        store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]  # not in the stubs
        store.set_timeout(_STORE_TIMEOUT)
        _own = Heartbeat(store, dist.get_rank(), dist.get_world_size(), 60 * stall_minutes)


def stop() -> None:
    """Stops this rank's heartbeat. Safe to call twice, or before `start`."""
    if _own is not None:
        _own.stop()


def moved() -> None:
    """Records progress of a loop that may often be seen at the same line, such as that over micro-batches."""
    global _moves
    _moves += 1


@contextmanager
def waiting(reason: str) -> Iterator[None]:
    """Inside the block this rank may wait without limit, for `reason`: it does not count as stalled."""
    global _waiting
    before, _waiting = _waiting, reason
    try:
        yield
    finally:
        _waiting = before


def lost_peer(error: BaseException) -> str | None:
    """Returns one line about an error of a collective that another rank caused by its end or silence, else None."""
    text = str(error)
    if not isinstance(error, dist.DistError) and not (isinstance(error, RuntimeError) and "gloo" in text):
        return None
    line = f"a collective failed at {_place_of(error)} ({' '.join(text.split())})"
    if _own is None:
        return line
    try:
        return f"{line}; {_own.places()}"
    except RuntimeError:  # the store is gone too
        return line


def described(beats: Mapping[int, Beat], now: float, *, silent_after: float) -> str:
    """Returns the places of the ranks in one text; `now` and `silent_after` in seconds."""
    groups: dict[str, list[int]] = {}
    for rank, beat in beats.items():
        where = f"waiting for {beat.waiting}" if beat.waiting else f"at {beat.place}"
        if now - beat.at >= silent_after:
            where = f"no sign of life for {now - beat.at:.0f} s ({beat.host}, pid {beat.pid}), last {where}"
        groups.setdefault(where, []).append(rank)
    return "; ".join(f"{_ranks(ranks)} {where}" for where, ranks in groups.items())


def _ranks(ranks: list[int]) -> str:
    """Ascending ranks as "rank 3" or "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank])
    text = ", ".join("-".join(str(end) for end in dict.fromkeys(run)) for run in runs)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"


def _place(frame: FrameType | None) -> str:
    """The innermost line of this package in a stack, as `training/step.py:88 (finish)`."""
    innermost = frame
    while frame is not None:
        if (place := _line(frame, frame.f_lineno)) is not None:
            return place
        frame = frame.f_back
    return f"{innermost.f_code.co_filename}:{innermost.f_lineno}" if innermost is not None else "its end"


def _place_of(error: BaseException) -> str:
    """The innermost line of this package that the error left."""
    place, trace = "an unknown line", error.__traceback__
    while trace is not None:
        place, trace = _line(trace.tb_frame, trace.tb_lineno) or place, trace.tb_next
    return place


def _line(frame: FrameType, number: int) -> str | None:
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(_PACKAGE):
        return None
    return f"{path.relative_to(_PACKAGE)}:{number} ({frame.f_code.co_name})"


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"
