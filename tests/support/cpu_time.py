"""Bounds on work, in CPU time of the thread that does it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

TRIES = 3

Result = TypeVar("Result")


def within_cpu_seconds(limit: float, work: Callable[[], Result]) -> Result:
    """What `work` returns. AssertionError if it takes `limit` seconds or more each time it is tried.

    One try may hold a garbage collection of all that a test process has imported; three in a row do not.
    """
    spent = []
    for _ in range(TRIES):
        start = time.thread_time()
        found = work()
        spent.append(time.thread_time() - start)
        if spent[-1] < limit:
            return found
    raise AssertionError(f"took {min(spent):.2f} s of CPU time, allowed are {limit:g}")
