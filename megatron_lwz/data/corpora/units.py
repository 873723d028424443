"""Cuts sources into units of work, and reads a unit.

A unit is a byte range of a JSONL file, some row groups of a Parquet file, or some text files.
"""

from __future__ import annotations

import gzip
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_lwz.data.corpora.spec import Format, SourceSpec
from megatron_lwz.errors import DataError, EnvironmentSetupError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Unit:
    """The part of a source that one worker reads at a time.

    `start` and `stop` bound a range: byte offsets of a JSONL file (the lines that begin in it are read), or row groups
    of a Parquet file.
    """

    source: int
    format: Format
    files: tuple[str, ...]
    start: int = 0
    stop: int = 0


def cut(source: int, kind: Format, files: list[Path], unit_bytes: int) -> Iterator[Unit]:
    """Yields the units of one source, about `unit_bytes` each, in the order of its documents."""
    if kind == "text":
        yield from _cut_texts(source, files, unit_bytes)
        return
    for file in files:
        if kind == "parquet":
            yield from _cut_parquet(source, file, unit_bytes)
        elif file.suffix == ".gz":
            yield Unit(source, kind, (str(file),))
        else:
            size = file.stat().st_size
            for start in range(0, size, unit_bytes):
                yield Unit(source, kind, (str(file),), start, min(start + unit_bytes, size))


def read(unit: Unit, source: SourceSpec) -> Iterator[str | DataError]:
    """Yields the texts of a unit in order. For a document that cannot be read, yields the error instead."""
    if unit.format == "text":
        yield from (_read_text(Path(file), source.encoding) for file in unit.files)
    elif unit.format == "parquet":
        yield from _read_parquet(unit, source)
    else:
        yield from _read_jsonl(unit, source)


def _cut_texts(source: int, files: list[Path], unit_bytes: int) -> Iterator[Unit]:
    waiting: list[str] = []
    size = 0
    for file in files:
        waiting.append(str(file))
        size += file.stat().st_size
        if size >= unit_bytes:
            yield Unit(source, "text", tuple(waiting))
            waiting, size = [], 0
    if waiting:
        yield Unit(source, "text", tuple(waiting))


def _cut_parquet(source: int, file: Path, unit_bytes: int) -> Iterator[Unit]:
    metadata = _open_parquet(file).metadata
    start, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= unit_bytes or group + 1 == metadata.num_row_groups:
            yield Unit(source, "parquet", (str(file),), start, group + 1)
            start, size = group + 1, 0


def _read_text(file: Path, encoding: str) -> str | DataError:
    try:
        return file.read_text(encoding=encoding).removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError, LookupError) as error:
        return DataError(file, f"cannot be read as {encoding} ({error})")


def _read_parquet(unit: Unit, source: SourceSpec) -> Iterator[str | DataError]:
    path = Path(unit.files[0])
    table = _open_parquet(path)
    if source.key not in table.schema_arrow.names:
        raise DataError(path, f"no column '{source.key}', there are: {', '.join(table.schema_arrow.names)}")
    groups = list(range(unit.start, unit.stop))
    for batch in table.iter_batches(batch_size=256, row_groups=groups, columns=[source.key]):
        for value in batch.column(0).to_pylist():
            yield (
                value if isinstance(value, str) else DataError(path, f"column '{source.key}' holds {value!r}, no text")
            )


def _open_parquet(path: Path) -> Any:
    try:
        parquet = importlib.import_module("pyarrow.parquet")  # imported by name because pyarrow is optional
    except ImportError as error:
        raise EnvironmentSetupError("reading Parquet needs pyarrow: pip install 'megatron-lwz[data]'") from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(path, f"not a Parquet file ({error})") from error


def _read_jsonl(unit: Unit, source: SourceSpec) -> Iterator[str | DataError]:
    path = Path(unit.files[0])
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                yield from _parse_lines(enumerate(stream, start=1), path, "line", source.key)
        else:
            with path.open("rb") as stream:
                yield from _parse_lines(_lines_between(stream, unit.start, unit.stop), path, "byte", source.key)
    except (OSError, EOFError) as error:
        raise DataError(path, f"cannot be read ({error})") from error


def _lines_between(stream: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yields the offset and the bytes of every line that begins in [start, stop)."""
    stream.seek(max(0, start - 1))
    if start:
        stream.readline()  # skips the line that began before `start`
    while (offset := stream.tell()) < stop:
        yield offset, stream.readline()


def _parse_lines(lines: Iterator[tuple[int, bytes]], path: Path, unit: str, key: str) -> Iterator[str | DataError]:
    for where, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:  # also raised for bytes that are not UTF-8
            yield DataError(path, f"{unit} {where}: not valid JSON ({error})")
            continue
        text = row.get(key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            yield DataError(path, f"{unit} {where}: needs a string under the key '{key}'")
        elif not text.isascii() and _LONE_SURROGATE.search(text):
            yield DataError(path, f"{unit} {where}: the text holds half a surrogate pair, which is no character")
        else:
            yield text
