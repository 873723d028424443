"""What torch's profiler wrote for a rank, brought to the clock and the numbering of the whole trace, and its totals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError
from megatron_lwz.profiling.lanes import joined
from megatron_lwz.profiling.trace import Event, named_process, rank_process

MARK = "clock of the spans"
"""Name of the annotation that is made at a known time of the monotonic clock: it ties torch's clock to that."""
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_ON_HOST = ("cpu_op", "cuda_runtime", "cuda_driver")
_DROPPED = ("Ev Idx", "External id", "Record function id", "Python id")
_NAMES = ("thread_name", "thread_sort_index")
"""Events that are kept of those that name and sort; processes get names of our own."""
_SHOWN = 15


@dataclass(frozen=True)
class Total:
    """What all calls of an operator took, in seconds: on the host without what it called, on the GPU the kernel's time."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Operators:
    """The operators of a rank, the longest first. `gpu_busy`: seconds in which any kernel ran; None without a GPU."""

    host: Sequence[Total] = ()
    gpu: Sequence[Total] = ()
    gpu_busy: float | None = None
    busy: Sequence[tuple[int, int]] = field(default=(), repr=False)
    """The same as intervals of the monotonic clock."""


def read_torch_trace(path: Path) -> list[Event]:
    """Returns the events of a file that torch's profiler wrote. Raises DataError."""
    try:
        events = json.loads(path.read_bytes())["traceEvents"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(path, f"no trace of torch's profiler ({error!r})") from error
    return [event for event in events if isinstance(event, dict)]


def clock_offset(events: Iterable[Event], marked: int, path: Path) -> int:
    """Returns what to add to torch's times, in ns, to have the monotonic clock: at `marked` MARK began. Raises DataError."""
    for event in events:
        if event.get("name") == MARK and event.get("ph") == "X":
            return marked - round(event["ts"] * 1000)
    raise DataError(path, "torch's profiler recorded no annotation: update torch")


def since(events: Iterable[Event], *, offset: int, zero: int) -> list[Event]:
    """Returns the events from `zero` of the monotonic clock on, and all names; without the start of torch's profiler."""
    first = (zero - offset) / 1000
    return [event for event in events if event.get("ph") == "M" or event.get("ts", first) >= first]


def shifted(events: Sequence[Event], rank: int, *, offset: int, zero: int) -> Iterator[Event]:
    """Yields the events with the numbers of this rank's processes, and times from `zero` of the monotonic clock on."""
    parts: dict[Any, int] = {}
    labels = {event.get("pid"): event["args"]["labels"] for event in events if event.get("name") == "process_labels"}
    for event in events:
        phase, name = event.get("ph"), event.get("name", "")
        if (phase == "M" and name not in _NAMES) or phase == "i" or event.get("cat") == "Trace":
            continue  # of the recording itself
        known = event.get("pid") in parts
        process = rank_process(rank, parts.setdefault(event.get("pid"), len(parts) + 1))
        if not known:
            yield from named_process(
                process, f"rank {rank}: operators, {labels.get(event.get('pid'), 'torch')}", order=1_000 * (rank + 1)
            )
        if phase == "M":
            yield {key: value for key, value in event.items() if key != "ts"} | {"pid": process}
            continue
        moved = {**event, "pid": process}
        if "ts" in event:
            moved["ts"] = round(event["ts"] + (offset - zero) / 1000, 3)
        if "id" in event:
            moved["id"] = f"{rank}.{event['id']}"
        if "args" in event:
            moved["args"] = {key: value for key, value in event["args"].items() if key not in _DROPPED}
        yield moved


def totals(events: Iterable[Event], *, offset: int) -> Operators:
    """Returns the longest operators of the host and of the GPU."""
    threads: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
    on_gpu = []
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in _ON_GPU:
            on_gpu.append(event)
        elif event.get("ph") == "X" and event.get("cat") in _ON_HOST:
            threads[event.get("pid"), event.get("tid")].append(event)
    host: dict[str, list[float]] = defaultdict(list)
    for calls in threads.values():
        for name, seconds in _own_times(calls):
            host[name].append(seconds)
    gpu: dict[str, list[float]] = defaultdict(list)
    for event in on_gpu:
        gpu[event["name"]].append(event["dur"] / 1e6)
    busy = joined(
        (round(event["ts"] * 1000) + offset, round((event["ts"] + event["dur"]) * 1000) + offset) for event in on_gpu
    )
    spent = sum(end - begin for begin, end in busy) / 1e9 if on_gpu else None
    return Operators(_longest(host), _longest(gpu), spent, busy)


def _own_times(calls: list[Event]) -> Iterator[tuple[str, float]]:
    """Yields name and seconds of every call of a thread, without the time of the calls inside it."""
    open_calls: list[list[Any]] = []  # [end, name, own time]
    for event in sorted(calls, key=lambda event: (event["ts"], -event["dur"])):
        while open_calls and open_calls[-1][0] <= event["ts"]:
            _, name, own = open_calls.pop()
            yield name, own / 1e6
        if open_calls:
            open_calls[-1][2] -= event["dur"]
        open_calls.append([event["ts"] + event["dur"], event["name"], event["dur"]])
    for _, name, own in open_calls:
        yield name, own / 1e6


def _longest(found: Mapping[str, Sequence[float]]) -> list[Total]:
    rows = [Total(name, len(times), max(0.0, sum(times))) for name, times in found.items()]
    return sorted(rows, key=lambda row: (-row.seconds, row.name))[:_SHOWN]
