"""Watches a process and its children while it trains: CPU seconds at the end of each step, and their peak memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

import psutil

ENGINE = "serve_engine"
"""Part of the command line of the embedded engine."""
POLL, SAMPLE = 0.02, 0.25
"""Seconds between two looks at the metrics, and between two samples of the memory."""


class StepWatch:
    """Follows the session of process `pid`, which it ends on exit.

    `peak` is the largest proportional set size of all processes together, in bytes.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._ends: list[tuple[float, float, float]] = []
        self.peak = 0

    def __enter__(self) -> StepWatch:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._root.pid, signal.SIGTERM)
        with contextlib.suppress(psutil.NoSuchProcess):
            _, alive = psutil.wait_procs(self._root.children(recursive=True), timeout=10)
            for process in alive:
                process.kill()

    def until(self, metrics: Path, steps: int) -> bool:
        """Waits for that many lines of metrics. Returns whether they came before the process ended."""
        sampled = 0.0
        while len(self._ends) < steps:
            if self._root.status() == psutil.STATUS_ZOMBIE:
                return False
            written = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            if written > len(self._ends):
                self._ends += [(time.monotonic(), *self._spent())] * (written - len(self._ends))
            if time.monotonic() - sampled > SAMPLE:
                sampled = time.monotonic()
                self.peak = max(self.peak, sum(map(_proportional, self._tree())))
            time.sleep(POLL)
        return True

    def seconds(self) -> list[float]:
        """Returns the seconds of each step after the first."""
        return self._differences(0)

    def cpu(self) -> list[float]:
        """Returns the CPU seconds of all processes in each step after the first."""
        return self._differences(1)

    def engine_cpu(self) -> list[float]:
        """Returns those of the embedded engine alone."""
        return self._differences(2)

    def _differences(self, place: int) -> list[float]:
        return [after[place] - before[place] for before, after in itertools.pairwise(self._ends)]

    def _tree(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def _spent(self) -> tuple[float, float]:
        """Returns the CPU seconds of all processes and of the engine until now. Ended children count, too."""
        total = engine = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent = sum((times.user, times.system, times.children_user, times.children_system))
                total += spent
                engine += spent if any(ENGINE in part for part in process.cmdline()) else 0.0
        return total, engine


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0
