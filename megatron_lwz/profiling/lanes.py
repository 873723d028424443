"""Sets of spans as intervals: spread over lanes so that none overlap, joined, intersected."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from megatron_lwz.profiling.spans import Span

Interval = tuple[int, int]


def spread(spans: Iterable[Span]) -> list[tuple[int, Span]]:
    """Returns the spans in the order of their beginnings, each with the lowest lane that is free then, from 0."""
    free: list[int] = []
    busy: list[Interval] = []
    lanes = 0
    placed = []
    for span in sorted(spans, key=lambda span: (span.begin, span.end)):
        while busy and busy[0][0] <= span.begin:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, lanes = lanes, lanes + 1
        heapq.heappush(busy, (span.end, lane))
        placed.append((lane, span))
    return placed


def joined(intervals: Iterable[Interval]) -> list[Interval]:
    """Returns disjoint intervals, in order, that cover the same time."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif end > begin:
            found.append((begin, end))
    return found


def covered(within: Interval, by: Sequence[Interval]) -> int:
    """Returns how much of an interval disjoint ones cover."""
    return sum(max(0, min(within[1], end) - max(within[0], begin)) for begin, end in by)


def gaps(within: Interval, by: Sequence[Interval]) -> list[Interval]:
    """Returns the parts of an interval that disjoint ones, in order, do not cover."""
    found, at = [], within[0]
    for begin, end in by:
        if begin > at:
            found.append((at, min(begin, within[1])))
        at = max(at, end)
    found.append((at, within[1]))
    return [(begin, end) for begin, end in found if end > begin]
