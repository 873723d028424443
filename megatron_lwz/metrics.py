"""Writes and reads a run's metrics: metrics.jsonl, evaluation.jsonl, TensorBoard files, summary.json. Also a timer."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from megatron_lwz.errors import DataError, refusal
from megatron_lwz.profiling.spans import PHASES, Recorder
from megatron_lwz.reading import parse_row
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.writing import naming, replacing, write_text

_WINDOW = 3
"""Number of steps at each end of a run over which summary.json averages."""

Row = dict[str, float]
Item = TypeVar("Item")


class Sink(Protocol):
    """Gets every row that a MetricsWriter writes. Neither call raises or takes long."""

    name: str
    failures: int
    """Number of rows, and of its other actions, that failed so far."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a row of training step or evaluation `step`, in any order; a step that is repeated comes again."""
        ...

    def close(self, *, finished: bool) -> None:
        """Ends it; `finished`: the run took all its steps. Further calls do nothing."""
        ...


class MetricsWriter:
    """Writes `metrics.jsonl`, one flat JSON object per training step, and `evaluation.jsonl`, one per evaluation.

    Only one process of a run may use it. A value that is not finite is written as null. A resumed run drops the rows of
    the steps that it repeats. `sinks` get the rows too; the metrics `trackers/<name>_failures` count what failed there.
    """

    def __init__(self, run_dir: Path | str, tensorboard: bool = True, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = sinks
        self._paths = RunPaths(run_dir)
        self._paths.root.mkdir(parents=True, exist_ok=True)
        self._events = _EventFile(self._paths.tensorboard) if tensorboard else None
        self._begun = False
        self._evaluated: set[int] = set()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the row of training step `step` (from 1) and flushes it."""
        if not self._begun:
            self._begun = True
            self._keep(self._paths.metrics, lambda row: row["step"] < step)
            self._keep(self._paths.evaluations, lambda row: row["step"] < step or row["step"] in self._evaluated)
            if self._events:
                self._events.add_event(_restart(step))
        failures = {f"trackers/{sink.name}_failures": float(sink.failures) for sink in self._sinks}
        self._append(self._paths.metrics, step, {**values, **failures})

    def write_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of the held-out prompts after `step` updates (from 0). Replaces an earlier row of `step`.

        Writes nothing if `values` is empty. An evaluation may be written after later training steps.
        """
        if values:
            self._keep(self._paths.evaluations, lambda row: row["step"] != step)
            self._evaluated.add(step)
            self._append(self._paths.evaluations, step, values)

    def close(self, seconds: float) -> None:
        """Writes `summary.json`. `seconds` is the wall-clock time of this process."""
        if self._events:
            self._events.close()
        for sink in self._sinks:
            sink.close(finished=True)
        failures = {"tracker_failures": {sink.name: sink.failures for sink in self._sinks}} if self._sinks else {}
        summary = summarize(read_history(self._paths.root)) | {"seconds": round(seconds, 3)} | failures
        write_json(self._paths.summary, summary)

    def _append(self, path: Path, step: int, values: Mapping[str, float]) -> None:
        with naming(path), path.open("ab") as stream:
            stream.write(_line({"step": step, **values}))
        if self._events:
            self._events.add_event(_scalars(step, values))
        for sink in self._sinks:
            sink.log(step, values)

    def _keep(self, path: Path, wanted: Callable[[Row], bool]) -> None:
        """Removes all rows that are not `wanted`, and a line that a kill truncated."""
        if path.exists():
            kept = b"".join(_line(row) for row in read_metrics(path) if wanted(row))
            with replacing(path) as file:
                file.write(kept)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if self._events:
            self._events.close()


class Timer:
    """Adds up seconds by name, and returns them as metrics `seconds/<name>`.

    >>> timer = Timer()
    >>> with timer("rollout"):
    ...     pass
    >>> list(timer.take())
    ['seconds/rollout']
    """

    def __init__(self, spans: Recorder | None = None, begins: Callable[[str], None] | None = None) -> None:
        """`spans` records each time too. `begins` is called with the name when a block begins."""
        self._seconds: Row = {}
        self._spans = spans or Recorder()
        self._begins = begins or (lambda name: None)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time of the block, also when it raises."""
        self._begins(name)
        started = time.perf_counter()
        try:
            with self._spans.span(PHASES, name):
                yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def each(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items and adds the time spent waiting for each."""
        source = iter(items)
        while True:
            with self(name):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def take(self) -> Row:
        """Returns the seconds since the last call, by metric name, and resets them to 0."""
        taken = {f"seconds/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds = {}
        return taken


def read_metrics(path: Path | str) -> list[Row]:
    """Reads the rows of a `metrics.jsonl`, null as nan. Skips a truncated last line (the run was killed).

    Raises DataError, which names the line.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(path, f"cannot be read {refusal(error)}") from error
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        row = parse_row(line, path, number)
        if row is None:
            continue
        if isinstance(row, DataError):
            if number == len(lines):
                break
            raise row
        if type(row.value.get("step")) is not int or not all(map(_is_metric, row.value.values())):
            raise row.error("not a row of metrics: a whole number under 'step', numbers or null elsewhere")
        rows.append({key: math.nan if value is None else value for key, value in row.value.items()})
    return rows


def torn(path: Path) -> int:
    """Returns the number of bytes of a last line that a kill cut off, 0 if there is none."""
    rest = path.read_bytes().rpartition(b"\n")[2]
    return len(rest) if isinstance(parse_row(rest, path, 0), DataError) else 0


def read_history(run_dir: Path | str) -> list[Row]:
    """Reads training steps and evaluations of a run into one table with a row per step.

    Row 0 is the evaluation before the first step.
    """
    merged: dict[float, Row] = {}
    paths = RunPaths(run_dir)
    for path in (paths.metrics, paths.evaluations):
        for row in read_metrics(path) if path.exists() else ():
            merged[row["step"]] = merged.get(row["step"], {}) | row
    return [merged[step] for step in sorted(merged)]


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the number of `steps`, and every metric's mean over the `first` and the `last` three steps.

    `rows` come from `read_history`. Row 0 counts as one of the first steps. Non-finite values are left out.
    """
    steps = sorted({int(row["step"]) for row in rows if row["step"] > 0})
    begin, end = steps[:_WINDOW], steps[-_WINDOW:]
    return {
        "steps": len(steps),
        "first": _means([row for row in rows if row["step"] == 0 or row["step"] in begin]),
        "last": _means([row for row in rows if row["step"] in end]),
    }


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all. Raises FileSystemError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _is_metric(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**63  # a longer one is no number that a run writes, and may be none for a float
    return value is None or isinstance(value, float)


def _means(rows: Sequence[Row]) -> Row:
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step" and math.isfinite(value):
                found.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


def _line(row: Mapping[str, float]) -> bytes:
    plain = {key: float(value) if math.isfinite(value) else None for key, value in row.items()}
    return (json.dumps(plain | {"step": int(row["step"])}) + "\n").encode()


class _EventFile:
    """A new TensorBoard file. Each event is in it when `add_event` returns. Raises FileSystemError.

    TensorBoard's own writer has a thread, which reports a full disk by a traceback, and some events late.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        self._path = folder / f"events.out.tfevents.{int(now):010d}.{platform.node()}.{os.getpid()}"
        with naming(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
        self._records = RecordWriter(self._file)
        self.add_event(event_pb2.Event(wall_time=now, file_version="brain.Event:2"))

    def add_event(self, event: Any) -> None:
        with naming(self._path):
            self._records.write(event.SerializeToString())
            self._file.flush()

    def close(self) -> None:
        with naming(self._path):
            self._file.close()


def _scalars(step: int, values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto import event_pb2, summary_pb2

    found = [summary_pb2.Summary.Value(tag=key, simple_value=float(value)) for key, value in values.items()]
    return event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=found))


def _restart(step: int) -> Any:
    """Returns an event that makes TensorBoard hide an earlier process's values for `step` and later steps."""
    from tensorboard.compat.proto import event_pb2

    session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return event_pb2.Event(wall_time=time.time(), step=step, session_log=session)
