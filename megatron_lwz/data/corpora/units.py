"""Cuts sources into units of work, and reads a unit.

A unit is a byte range of a JSONL file, some row groups of a Parquet file, some text files, or a whole file whose rows
cannot be cut: a JSON array, or anything compressed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_lwz.data.corpora.spec import Format, SourceSpec
from megatron_lwz.errors import DataError, refusal
from megatron_lwz.reading import (
    MAX_LINE_BYTES,
    Row,
    check_length,
    open_parquet,
    parquet_rows,
    parse_row,
    read_text,
    scan_rows,
    shape_of,
)
from megatron_lwz.reading import Unit as Place


@dataclass(frozen=True)
class Unit:
    """The part of a source that one worker reads at a time.

    `start` and `stop` bound a range: byte offsets of a JSONL file (the lines that begin in it are read), or row groups
    of a Parquet file. Both are 0 for a file that is read whole.
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
        shape = shape_of(file) if kind != "parquet" else kind  # what the file holds decides, not its name
        if shape == "parquet":
            yield from _cut_parquet(source, file, unit_bytes)
        elif shape != "lines":
            yield Unit(source, kind, (str(file),))
        else:
            size = file.stat().st_size
            for start in range(0, size, unit_bytes):
                yield Unit(source, kind, (str(file),), start, min(start + unit_bytes, size))


def read(unit: Unit, source: SourceSpec) -> Iterator[str | DataError]:
    """Yields the texts of a unit in order. For a document that cannot be read, yields the error instead.

    Raises DataError when the rest of the unit cannot be read.
    """
    if unit.format == "text":
        yield from (_read_text(Path(file), source.encoding) for file in unit.files)
    elif unit.format == "parquet":
        yield from _read_parquet(unit, source.key)
    elif unit.stop:
        yield from _read_range(unit, source.key)
    else:
        yield from (_text(found, source.key) for found in scan_rows(unit.files[0]))


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
    metadata = open_parquet(file).metadata
    start, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= unit_bytes or group + 1 == metadata.num_row_groups:
            yield Unit(source, "parquet", (str(file),), start, group + 1)
            start, size = group + 1, 0


def _read_text(file: Path, encoding: str) -> str | DataError:
    try:
        if encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig"):
            return read_text(file)
        text = file.read_text(encoding=encoding).removeprefix("\ufeff")
        text.encode()  # some encodings can hold half a surrogate pair
        return text
    except DataError as error:
        return error
    except (OSError, UnicodeError, LookupError) as error:
        return DataError(file, f"cannot be read as {encoding} ({error})")


def _read_parquet(unit: Unit, key: str) -> Iterator[str | DataError]:
    path = Path(unit.files[0])

    def chosen(present: Sequence[str]) -> Sequence[str]:
        if key not in present:
            raise DataError(path, f"no column '{key}', there are: {', '.join(present)}")
        return [key]

    for row in parquet_rows(path, columns=chosen, groups=range(unit.start, unit.stop)):
        yield _text(row, key)


def _read_range(unit: Unit, key: str) -> Iterator[str | DataError]:
    """Yields the texts of the lines that begin in a byte range."""
    path = Path(unit.files[0])
    try:
        with path.open("rb") as stream:
            for number, (offset, line) in enumerate(_lines_between(stream, unit.start, unit.stop), start=1):
                # The numbers of lines after the first range are unknown.
                place: tuple[int, Place] = (offset, "byte") if unit.start else (number, "line")
                check_length(line, path, *place)
                if (found := parse_row(line, path, *place)) is not None:
                    yield _text(found, key)
    except OSError as error:
        raise DataError(path, f"cannot be read {refusal(error)}") from error


def _lines_between(stream: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yields the offset and the bytes of every line that begins in [start, stop), of a very long line only a part."""
    stream.seek(max(0, start - 1))
    if start:  # skips the line that began before `start`
        while (part := stream.readline(MAX_LINE_BYTES)) and not part.endswith(b"\n"):
            pass
    while (offset := stream.tell()) < stop:
        yield offset, stream.readline(MAX_LINE_BYTES + 1)


def _text(found: Row | DataError, key: str) -> str | DataError:
    if isinstance(found, DataError):
        return found
    text = found.value.get(key)
    return text if isinstance(text, str) else found.error(f"needs a string under the key '{key}'")
