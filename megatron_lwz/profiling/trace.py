"""Spans as events of Chrome's trace format, which ui.perfetto.dev opens: one process per rank, engine and kind of reward.

Times are microseconds from the trace's beginning. A track shows spans that do not overlap: where they do, it has several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

from megatron_lwz.profiling.lanes import spread
from megatron_lwz.profiling.spans import ENGINE, PHASES, REWARD, STEPS, SYNC, Span

Event = dict[str, Any]

_OF_A_RANK = (STEPS, PHASES, SYNC)
_PER_RANK = 100
"""Numbers of processes that a rank may use: its own tracks, then what its operators ran on."""


def rank_process(rank: int, part: int = 0) -> int:
    """Returns the number of a process of the trace: of the rank's own tracks, or of `part` of its operators, from 1."""
    return 1_000_000 + rank * _PER_RANK + part


def trainer_events(rank: int, spans: Iterable[Span], *, zero: int) -> Iterator[Event]:
    """Yields the tracks of a rank: steps, phases, weight sync. `zero` is the beginning, on the clock of the spans."""
    process = rank_process(rank)
    yield from _process(process, f"rank {rank}: trainer", order=rank)
    by_track = _by_track(spans)
    for number, track in enumerate(_OF_A_RANK):
        if track in by_track:
            yield _thread(process, number, track)
            yield from (_event(process, number, span, zero) for span in by_track[track])


def service_events(spans: Iterable[Span], *, zero: int) -> Iterator[Event]:
    """Yields the tracks of engines, with the number of requests in flight, and of rewards."""
    by_track = _by_track(spans)
    engines = [track for track in by_track if track.startswith(ENGINE)]
    rewards = [track for track in by_track if track.startswith(REWARD)]
    for place, track in enumerate(engines):
        process = 1_000 + place
        yield from _process(process, track, order=500_000 + place)
        yield from _lanes(process, 0, "request", by_track[track], zero)
        yield from _in_flight(process, by_track[track], zero)
    if rewards:
        yield from _process(2_000, "rewards", order=600_000)
    first = 0
    for track in rewards:
        name, lanes = track.removeprefix(REWARD), spread(by_track[track])
        yield from _lanes(2_000, first, name, by_track[track], zero)
        first += 1 + max(lane for lane, _ in lanes)


def named_process(number: int, name: str, *, order: int) -> list[Event]:
    """Returns the events that give a process its name and place."""
    return _process(number, name, order=order)


def _lanes(process: int, first: int, name: str, spans: Sequence[Span], zero: int) -> Iterator[Event]:
    placed = spread(spans)
    for lane in sorted({lane for lane, _ in placed}):
        yield _thread(process, first + lane, f"{name} {lane + 1}")
    yield from (_event(process, first + lane, span, zero) for lane, span in placed)


def _in_flight(process: int, spans: Sequence[Span], zero: int) -> Iterator[Event]:
    changes = sorted([(span.begin, 1) for span in spans] + [(span.end, -1) for span in spans])
    times = [at for at, _ in changes]
    counts = list(accumulate(change for _, change in changes))
    for at, pairs in groupby(zip(times, counts, strict=True), key=lambda pair: pair[0]):
        *_, (_, count) = pairs
        yield {
            "ph": "C",
            "name": "requests in flight",
            "pid": process,
            "ts": _micro(at - zero),
            "args": {"requests": count},
        }


def _event(process: int, thread: int, span: Span, zero: int) -> Event:
    begin, end = _micro(span.begin - zero), _micro(span.end - zero)
    event = {"ph": "X", "cat": "lwz", "name": span.name, "pid": process, "tid": thread, "ts": begin}
    return event | {"dur": round(end - begin, 3), "args": dict(span.facts)}


def _process(number: int, name: str, *, order: int) -> list[Event]:
    return [
        {"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}},
        {"ph": "M", "name": "process_sort_index", "pid": number, "args": {"sort_index": order}},
    ]


def _thread(process: int, number: int, name: str) -> Event:
    return {"ph": "M", "name": "thread_name", "pid": process, "tid": number, "args": {"name": name}}


def _by_track(spans: Iterable[Span]) -> Mapping[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
        found.setdefault(span.track, []).append(span)
    return dict(sorted(found.items()))


def _micro(nanoseconds: int) -> float:
    return nanoseconds / 1000
