"""Waits for what another thread or process does, with a limit."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import time
from collections.abc import Callable

PAUSE = 0.01
PATIENCE = 300.0
"""Seconds. For what hangs, and for nothing else: what takes a second can take a minute on a busy machine."""


def wait_for(
    condition: Callable[[], object],
    *,
    seconds: float = PATIENCE,
    what: str | None = None,
    process: subprocess.Popen | None = None,
    output: Callable[[], str] = lambda: "",
    pause: float = PAUSE,
) -> None:
    """Returns when `condition()` is true.

    AssertionError after `seconds`, or when `process` ends before; it says `what` was waited for (by default the
    condition's source) and ends with `output()`.
    """
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"{_said(condition, what)}: the process ended with {process.returncode}\n{output()}")
        assert time.monotonic() < end, f"{_said(condition, what)}: not within {seconds:g} s\n{output()}"
        time.sleep(pause)


async def until(condition: Callable[[], object], *, seconds: float = PATIENCE, what: str | None = None) -> None:
    """`wait_for` in an event loop."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{_said(condition, what)}: not within {seconds:g} s"
        await asyncio.sleep(PAUSE)


def _said(condition: Callable[[], object], what: str | None) -> str:
    if what is not None:
        return what
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):  # no function, or none in a file
        return repr(condition)
