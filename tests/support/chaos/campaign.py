"""Many disturbed runs, one after the other, and what is to be said of them."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.chaos.bench import Bench
from tests.support.chaos.trial import Event, Fault, Trial

FAULTS: dict[Fault, int] = {
    Fault("kill"): 20, Fault("kill", "all"): 12, Fault("kill", "torchrun"): 8, Fault("kill", "rank 0"): 8,
    Fault("kill", "rank 1"): 8, Fault("kill", "rollout process"): 10, Fault("kill", "engine"): 6, Fault("cut write"): 12,
    Fault("disk full"): 6, Fault("disk read-only"): 4,
}  # fmt: skip
"""What may happen → how often, relative to the others. What engines say wrongly has its place in scripted_engine.py."""
IN_TURN = (
    Fault("connections stalled"), Fault("judge down", "killed"), Fault("clock jump"), Fault("judge down", "failing"),
    Fault("freeze", "rollout process"), Fault("judge down", "hanging"), Fault("connections dropped"),
    Fault("freeze", "rank 0"), Fault("freeze", "rank 1"),
)  # fmt: skip
"""What ends no run: every run has the next two of them, so that none is left out by chance."""
SHORT = (
    Fault("judge down", "failing"), Fault("kill", "all"), Fault("disk full"), Fault("cut write"), Fault("kill", "engine"),
    Fault("clock jump"),
)  # fmt: skip
"""For the test suite."""
PER_RUN = 10
"""Faults of one run."""
FILES = ("journal", "checkpoints", "weights", "metrics", "attempts", "config", "tensorboard", "evaluation", "lock")


@dataclass
class Result:
    """All events so far, and the runs of which something is wrong: name → what."""

    events: list[Event] = field(default_factory=list)
    wrong: dict[str, list[str]] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Layout → runs."""
    tokens: int = 0
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return sum(event.fault.kind in ("kill", "cut write") for event in self.events)

    @property
    def lost(self) -> int:
        return sum(event.lost for event in self.events)

    @property
    def broken(self) -> bool:
        return bool(self.wrong or self.lost or any(event.wrong for event in self.events))


def run(
    folder: Path, *, faults: int, seed: int, steps: int, short: bool = False, seconds: float = float("inf")
) -> Result:
    """Disturbs run after run until so many faults have happened, or the time is over."""
    result, began = Result(), time.monotonic()
    with Bench(folder, steps=steps) as bench:
        for number in range(10**6):
            result.seconds = time.monotonic() - began
            if len(result.events) >= faults or result.seconds > seconds or (short and number):
                return result
            draw = random.Random(f"{seed}/{number}")
            layout, ranks = ("1 rank", lambda: 1) if short else _layout(number)
            chosen = list(SHORT) if short else _drawn(draw, number, min(PER_RUN, faults - len(result.events)))
            trial = Trial(bench, f"run_{number}", ranks, draw)
            try:
                trial.survive(chosen)
            finally:
                _add(result, trial, layout, number)
            if not result.wrong:
                trial.remove()
    raise AssertionError("no end")


def _layout(number: int) -> tuple[str, Callable[[], int]]:
    """Half of the runs on one rank, a third on two, the others change with every start."""
    if number % 6 in (1, 4):
        return "2 ranks", lambda: 2
    if number % 6 == 5:
        lives: Iterator[int] = iter(int(1 + life % 2) for life in range(10**6))
        return "changing", lambda: next(lives)
    return "1 rank", lambda: 1


def _drawn(draw: random.Random, number: int, count: int) -> list[Fault]:
    """The faults of run `number`, in an order that is drawn, too."""
    chosen = [IN_TURN[(2 * number + place) % len(IN_TURN)] for place in range(min(2, count))]
    chosen += draw.choices(list(FAULTS), list(FAULTS.values()), k=count - len(chosen))
    draw.shuffle(chosen)
    return chosen


def _add(result: Result, trial: Trial, layout: str, number: int) -> None:
    result.events += trial.events
    result.tokens += trial.tokens
    result.runs[layout] += 1
    wrong = [*trial.wrong, *(text for event in trial.events for text in event.wrong)]
    if wrong:
        result.wrong[trial.folder.name] = wrong
    for event in trial.events:
        note = "; ".join(event.wrong) or "ok"
        print(f"  {event.fault.kind:19} {event.victim:14} {event.where[:60]:60} lost {event.lost}  {note}", flush=True)
    state = "; ".join(trial.wrong) or "as undisturbed"
    print(f"run {number} ({layout}): {len(trial.events)} faults; {state}; so far {result.kills} kills, "
          f"{result.lost} tokens lost", flush=True)  # fmt: skip


def table(result: Result) -> str:
    """The faults as a table of Markdown: kind and victim, how often, survived, tokens lost."""
    rows = defaultdict(lambda: [0, 0, 0])
    for event in result.events:
        name = event.fault.kind + (f", {event.victim}" if event.victim else "")
        tried, survived, lost = rows[name]
        rows[name] = [tried + 1, survived + (not event.wrong and not event.lost), lost + event.lost]
    lines = ["| fault | tried | survived | tokens lost |", "|---|---|---|---|"]
    lines += [f"| {name} | {tried} | {survived} | {lost} |" for name, (tried, survived, lost) in sorted(rows.items())]
    tried, survived, lost = (sum(row[at] for row in rows.values()) for at in range(3))
    return "\n".join([*lines, f"| **all** | {tried} | {survived} | {lost} |"])


def places(result: Result) -> str:
    """What was being written at the moments, as a line."""
    found: dict[str, int] = defaultdict(int)
    for event in result.events:
        found[next((name for name in FILES if name in event.where), "other")] += 1
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items(), key=lambda item: -item[1]))


def as_json(result: Result) -> dict[str, Any]:
    """All that was seen."""
    return {
        "kills": result.kills, "tokens_lost": result.lost, "tokens": result.tokens, "runs": dict(result.runs),
        "wrong": result.wrong, "seconds": round(result.seconds),
        "events": [
            {"fault": event.fault.kind, "victim": event.victim, "asked": event.fault.victim, "call": event.call,
             "where": event.where, "tokens_lost": event.lost, "wrong": event.wrong}
            for event in result.events
        ],
    }  # fmt: skip


def write(result: Result, path: Path) -> None:
    path.write_text(json.dumps(as_json(result), indent=1) + "\n", encoding="utf-8")
