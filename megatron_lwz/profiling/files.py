"""The files of a profile: a part for each rank, which that rank writes, then the trace and the summary of all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError
from megatron_lwz.profiling.operators import Operators, Total
from megatron_lwz.profiling.spans import Span
from megatron_lwz.profiling.summary import summarize
from megatron_lwz.profiling.trace import Event, service_events
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.writing import naming, replacing, write_text

_LEVEL = 5
"""Of gzip: the default takes twice the time for some per cent."""


@dataclass(frozen=True)
class Head:
    """The first line of a rank's part; each further line is an event."""

    rank: int
    spans: Sequence[Span]
    operators: Operators | None


def write_part(path: Path, head: Head, events: Iterable[Event]) -> None:
    """Writes the part of one rank. Raises FileSystemError."""
    with naming(path), path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(head)) + "\n")
        file.writelines(json.dumps(event) + "\n" for event in events)


def combine(run: RunPaths, ranks: Sequence[int], services: Sequence[Span], *, zero: int, steps: str) -> None:
    """Makes the trace and the summary of the parts. Raises LwzError."""
    parts = {rank: run.profile_part(rank) for rank in ranks}
    heads = {rank: _head(part) for rank, part in parts.items()}
    trace, summary = run.profile_trace(steps), run.profile_summary(steps)
    found = summarize(
        {rank: head.spans for rank, head in heads.items()},
        services,
        {rank: head.operators for rank, head in heads.items() if head.operators is not None},
    )
    with replacing(trace, private=True) as file, gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as packed:
        packed.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        packed.writelines(_separated(_lines(parts.values(), services, zero)))
        packed.write(b"\n]}\n")
    write_text(summary, json.dumps(found.as_json(), indent=1) + "\n", private=True)


def _lines(parts: Iterable[Path], services: Sequence[Span], zero: int) -> Iterator[bytes]:
    for event in service_events(services, zero=zero):
        yield json.dumps(event).encode()
    for part in parts:
        with part.open("rb") as file:
            next(file)
            yield from (line.rstrip(b"\n") for line in file)


def _separated(lines: Iterable[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines):
        yield (b",\n" if number else b"") + line


def _head(part: Path) -> Head:
    try:
        with part.open("rb") as file:
            value = json.loads(next(file))
        return Head(value["rank"], [Span(**span) for span in value["spans"]], _operators(value["operators"]))
    except (OSError, StopIteration, ValueError, LookupError, TypeError) as error:
        raise DataError(part, f"is no part of a profile ({error!r}): do all ranks see the run folder?") from error


def _operators(value: Mapping[str, Any] | None) -> Operators | None:
    if value is None:
        return None
    host, gpu = ([Total(**row) for row in value[place]] for place in ("host", "gpu"))
    return Operators(host, gpu, value["gpu_busy"], [(begin, end) for begin, end in value["busy"]])
