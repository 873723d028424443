"""Reads the trace of a profile, as ui.perfetto.dev does, and what must hold for every one."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

Event = dict[str, Any]
CLOCK_US = 2000.0
"""By how much an operator may seem to lie outside of the phase that called it."""


@dataclass(frozen=True)
class Trace:
    text: str
    events: list[Event]

    def named(self, kind: str) -> dict[Any, str]:
        """`process_name`: process → its name; `thread_name`: (process, thread) → its name."""
        found = {}
        for event in self.events:
            if event["ph"] == "M" and event["name"] == kind:
                key = event["pid"] if kind == "process_name" else (event["pid"], event["tid"])
                found[key] = event["args"]["name"]
        return found

    def spans(self, process: str, thread: str | None = None) -> list[Event]:
        """Of the processes whose names begin so, in order of time."""
        processes, threads = self.named("process_name"), self.named("thread_name")
        found = [
            event
            for event in self.events
            if event["ph"] == "X"
            and processes[event["pid"]].startswith(process)
            and thread in (None, threads.get((event["pid"], event["tid"])))
        ]
        return sorted(found, key=lambda event: event["ts"])

    def within(self, outer: Event, spans: list[Event], margin: float = 0.0) -> list[Event]:
        """Those that lie inside a span."""
        begin, end = outer["ts"] - margin, outer["ts"] + outer["dur"] + margin
        return [span for span in spans if begin <= span["ts"] and span["ts"] + span["dur"] <= end]


def read_trace(path: Path) -> Trace:
    """Checks that no two spans of a track overlap, and that all tracks have names."""
    text = gzip.decompress(path.read_bytes()).decode()
    trace = Trace(text, json.loads(text)["traceEvents"])
    processes, threads = trace.named("process_name"), trace.named("thread_name")
    ours = [event for event in trace.events if event.get("cat") == "lwz"]
    assert all(event["pid"] in processes for event in trace.events)
    assert all((event["pid"], event["tid"]) in threads and event["ts"] >= 0 <= event["dur"] for event in ours)
    key = lambda event: (event["pid"], event["tid"], event["ts"])  # noqa: E731
    for _, track in groupby(sorted(ours, key=key), key=lambda event: key(event)[:2]):
        for one, other in pairwise(track):
            assert one["ts"] + one["dur"] <= other["ts"] + 0.01, (one, other)
    return trace
