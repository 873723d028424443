"""Runs a target on many inputs and checks each: a result, or one of the target's own errors, in bounded time and memory."""

from __future__ import annotations

import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from megatron_lwz.errors import LwzError

CPU_SECONDS = 5.0
"""CPU time after which one input counts as a hang."""
MEMORY_BYTES = 3 << 30
"""Address space that all inputs together may add."""


class Hang(BaseException):
    """One input took too long. Not an Exception, so that no parser can swallow it."""


@dataclass(frozen=True)
class Target:
    """A parser. `make` returns an input, `parse` reads it and raises one of `errors`, or LwzError, for a bad one."""

    name: str
    make: Callable[[random.Random], bytes]
    parse: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = ()


class Failure(AssertionError):
    """A parser broke its promise. `data` is the input."""

    def __init__(self, target: str, data: bytes, error: BaseException) -> None:
        super().__init__(f"{target}: {type(error).__name__}: {error!s:.300}")
        self.target, self.data = target, data


def check(target: Target, data: bytes) -> bool:
    """Parses one input. Returns whether it was accepted. Raises Failure."""
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        target.parse(data)
    except LwzError as error:
        if "\n" in str(error).strip():
            raise Failure(target.name, data, ValueError(f"an error of several lines: {error}")) from error
        return False
    except target.errors:
        return False
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Failure(target.name, data, error) from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return True


def fuzz(
    target: Target,
    *,
    seed: int,
    inputs: int | None = None,
    seconds: float | None = None,
    shown: Callable[[int, int], None] = lambda _count, _accepted: None,
) -> tuple[int, int]:
    """Tries `inputs` inputs, or as many as fit into `seconds` of CPU time. Returns (inputs tried, inputs accepted).

    Raises Failure for the first input that breaks the promise.
    """
    rng = random.Random(f"{seed}/{target.name}")
    count = accepted = 0
    begin = time.process_time()
    while (inputs is None or count < inputs) and (seconds is None or time.process_time() - begin < seconds):
        accepted += check(target, target.make(rng))
        count += 1
        if count % 1000 == 0:
            shown(count, accepted)
    return count, accepted


def bound_this_process() -> None:
    """Makes a hang raise Hang, and a blow-up of memory raise MemoryError. Called from the main thread."""

    def hang(_number: int, _frame: FrameType | None) -> None:
        raise Hang(f"more than {CPU_SECONDS:g} s of CPU time")

    signal.signal(signal.SIGVTALRM, hang)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
