"""Reads files that people give us: text, JSON, and rows of JSONL, JSON arrays (plain or gzip) and Parquet.

One place decides about encodings, line numbers, sizes and broken characters, so every stage and tool treats a file
alike. A byte order mark is accepted and removed. Each fault is a DataError that names the file and the line.
"""

from __future__ import annotations

import gzip
import importlib
import json
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from megatron_lwz.decoding import NestedTooDeeply, decode_json, refuse_deep_json
from megatron_lwz.errors import DataError, EnvironmentSetupError, refusal
from megatron_lwz.units import GIB, MIB

MAX_LINE_BYTES = 256 * MIB
"""Longest line of a JSONL file. A longer one is almost always a file without line ends."""
MAX_DOCUMENT_BYTES = 2 * GIB
"""Largest file that is read as one JSON or text document. Larger data belongs in JSONL or Parquet."""

Unit = Literal["line", "row", "byte"]
"""What a row's number counts: lines of a JSON file, rows of a Parquet file, or the bytes before a line."""
Shape = Literal["lines", "array", "gzip", "parquet"]
"""How the rows lie in a file: JSON lines, a JSON array, either of them compressed, or Parquet."""

_PARQUET_ROWS = 256
"""Number of Parquet rows in memory at once. It is small because a conversation may be long."""
_PARQUET_ERRORS = (OSError, ValueError, NotImplementedError, ArithmeticError, LookupError)
"""Errors of pyarrow: a file that is none, an unknown codec, text that is not UTF-8, dates out of Python's range."""
_SNIFFED = 512
"""Number of bytes that decide about the shape of a file."""
_UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")
_PACKED = {b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
_AGAIN = "it is damaged or cut off, copy it again"
_CORRECT = "correct it"
_SPREAD = "one object over several lines: give one object per line, or an array"
_HALF = "holds half a surrogate pair, which is no character: remove it"
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = " \t\r\n"


def files_below(folder: Path) -> list[Path]:
    """Returns the files in a folder and the folders in it, sorted. Hidden ones (`._a.jsonl`, `.cache/`) are left out."""
    found = (path for path in folder.rglob("*") if not any(n.startswith(".") for n in path.relative_to(folder).parts))
    return sorted(path for path in found if path.is_file())


@dataclass(frozen=True)
class Row:
    """One row of a file. `number` counts from 1: lines of a JSON file, rows of a Parquet file (bytes: from 0).

    `place` counts the elements of a JSON array from 1. Several may stand on one line.
    """

    path: Path
    number: int
    value: Mapping[str, Any]
    unit: Unit = "line"
    place: int | None = None

    @property
    def identity(self) -> str:
        """`file name:number`, in a JSON array `file name:place`: an id for rows that bring none."""
        return f"{self.path.name}:{self.number if self.place is None else self.place}"

    @property
    def plain(self) -> Mapping[str, Any]:
        """`value` as JSON can hold it: dates and decimals of a Parquet file as texts. Raises DataError for bytes."""
        if self.unit != "row":
            return self.value
        try:
            found: dict[str, Any] = json.loads(json.dumps(self.value, default=_as_text))
        except TypeError as error:
            raise self.error(error) from error
        return found

    def error(self, advice: object) -> DataError:
        """Returns the error that names this row and says `advice`."""
        return DataError(self.path, str(advice), line=self.number, unit=self.unit)


def read_text(path: Path | str) -> str:
    """Returns the text of a UTF-8 file, without its byte order mark and with "\\n" as line end. Raises DataError."""
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            raise DataError(path, "is a device: name a file")
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1) if status.st_size <= MAX_DOCUMENT_BYTES else b""
        if status.st_size > MAX_DOCUMENT_BYTES or len(data) > MAX_DOCUMENT_BYTES:  # a pipe has no size
            raise DataError(path, f"is larger than {MAX_DOCUMENT_BYTES >> 30} GiB: split it, or give JSONL or Parquet")
    except OSError as error:
        raise DataError(path, f"cannot be read {refusal(error, _AGAIN)}") from error
    return _decode(data, path).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path | str) -> Any:
    """Returns the value of a JSON file. Raises DataError."""
    return parse_json(read_text(path), path)


def read_object(path: Path | str) -> dict[str, Any]:
    """Returns the object of a JSON file. Raises DataError, also for any other value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(path, f"must hold a JSON object, not {_kind(value)}")
    return value


def parse_json(text: str, path: Path | str, *, line: int | None = None, unit: Unit = "line") -> Any:
    """Decodes JSON. Raises DataError: not JSON, nested too deeply, or half a surrogate pair in a string."""
    try:
        value = decode_json(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if line is not None else f"line {error.lineno}, column {error.colno}"
        raise DataError(path, f"not valid JSON ({error.msg}, {at}): {_CORRECT}", line=line, unit=unit) from error
    except NestedTooDeeply as error:
        raise DataError(path, f"JSON is {error}", line=line, unit=unit) from error
    except ValueError as error:  # a number of more digits than Python converts
        raise DataError(path, f"not valid JSON {refusal(error, _CORRECT)}", line=line, unit=unit) from error
    if (fault := _fault(value, text, 0, len(text))) is not None:
        raise DataError(path, fault, line=line, unit=unit)
    return value


def read_rows(path: Path | str) -> Iterator[Row]:
    """Yields every row of a file; skips blank lines. Raises DataError for the first row that is not a JSON object."""
    for found in scan_rows(path):
        if isinstance(found, DataError):
            raise found
        yield found


def scan_rows(
    path: Path | str, *, columns: Callable[[Sequence[str]], Sequence[str]] | None = None
) -> Iterator[Row | DataError]:
    """Yields every row of a file, and an error in place of each row that cannot be read.

    The content decides the format, not the name: Parquet, a JSON array, or one JSON object per line; the latter two may
    be compressed with gzip. `columns` chooses the columns to read of a Parquet file from those present. Raises
    DataError when the file as a whole cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            shape = _shape(file.peek(_SNIFFED), path)  # not read: a pipe cannot go back
            if shape == "parquet":
                yield from parquet_rows(path, columns=columns)
            elif shape == "gzip":
                with gzip.open(file) as unpacked:
                    yield from _json_rows(unpacked, path)  # type: ignore[arg-type]  # GzipFile reads like a BinaryIO
            else:
                yield from _json_rows(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be read {refusal(error, _AGAIN)}") from error


def shape_of(path: Path | str) -> Shape:
    """Returns how the rows lie in a file, by its first bytes. Raises DataError."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _shape(file.peek(_SNIFFED), path)
    except OSError as error:
        raise DataError(path, f"cannot be read {refusal(error, _AGAIN)}") from error


def open_parquet(path: Path) -> Any:
    """Returns the pyarrow.parquet.ParquetFile of a path. Raises DataError, or EnvironmentSetupError without pyarrow."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")  # imported by name because pyarrow is optional
    except ImportError as error:
        raise EnvironmentSetupError(
            "reading Parquet needs pyarrow, which is not installed: pip install 'megatron-lwz[data]'"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except _PARQUET_ERRORS as error:
        raise DataError(path, f"not a Parquet file {refusal(error, _AGAIN)}") from error


def parquet_rows(
    path: Path, *, columns: Callable[[Sequence[str]], Sequence[str]] | None = None, groups: range | None = None
) -> Iterator[Row]:
    """Yields the rows of a Parquet file, or of some row groups of it. `columns` is as in `scan_rows`. Raises DataError."""
    file = open_parquet(path)
    wanted = list(columns(file.schema_arrow.names)) if columns is not None else None
    groups = groups if groups is not None else range(file.metadata.num_row_groups)
    number = sum(file.metadata.row_group(group).num_rows for group in range(groups.start))
    try:
        for batch in file.iter_batches(_PARQUET_ROWS, row_groups=list(groups), columns=wanted):
            for value in batch.to_pylist():
                number += 1
                yield Row(path, number, value, "row")
    except _PARQUET_ERRORS as error:
        raise DataError(path, f"cannot be read after row {number} {refusal(error, _AGAIN)}") from error


def check_length(line: bytes, path: Path, number: int, unit: Unit = "line") -> None:
    """Raises DataError for a line of more than MAX_LINE_BYTES, of which the reader should hold no more."""
    if len(line) > MAX_LINE_BYTES:
        advice = f"is longer than {MAX_LINE_BYTES >> 20} MiB: give one row per line"
        raise DataError(path, advice, line=number, unit=unit)


def parse_row(data: bytes, path: Path, number: int, unit: Unit = "line") -> Row | DataError | None:
    """Decodes one line of a JSONL file: its row, the error, or None for a blank line."""
    try:
        text = _decode(data.rstrip(b"\r\n"), path, line=number, unit=unit)
        if not text.strip():
            return None
        if text.strip() == "{":
            raise DataError(path, _SPREAD, line=number, unit=unit)
        return _row(parse_json(text, path, line=number, unit=unit), path, number, unit)
    except DataError as error:
        return error


def _shape(start: bytes, path: Path) -> Shape:
    """Returns the shape of a file that begins like this. Raises DataError for one that is never read."""
    if start[:2] in _OTHER_BOMS:
        raise DataError(path, "is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)")
    if (packed := next((name for mark, name in _PACKED.items() if start.startswith(mark)), None)) is not None:
        raise DataError(path, f"is compressed with {packed}: unpack it, or compress it with gzip")
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    return "array" if start.removeprefix(_UTF8_BOM).lstrip()[:1] == b"[" else "lines"


def _json_rows(file: BinaryIO, path: Path) -> Iterator[Row | DataError]:
    """Yields the rows of a JSON array or of JSON lines."""
    number, line = 1, file.readline(MAX_LINE_BYTES + 1)
    _shape(line, path)  # what is packed may be of another encoding too
    line = line.removeprefix(_UTF8_BOM)
    while line and not line.strip():
        number, line = number + 1, file.readline(MAX_LINE_BYTES + 1)
    if line.lstrip()[:1] == b"[":
        rest = file.read(MAX_DOCUMENT_BYTES)
        if len(rest) == MAX_DOCUMENT_BYTES:
            raise DataError(path, f"a JSON array of more than {MAX_DOCUMENT_BYTES >> 30} GiB: convert it to JSONL")
        yield from _array_rows(_decode(b"\n" * (number - 1) + line + rest, path), path)
        return
    if line.strip() == b"{":
        raise DataError(path, _SPREAD, line=number)
    while line:
        check_length(line, path, number)
        if (row := parse_row(line, path, number)) is not None:
            yield row
        number, line = number + 1, file.readline(MAX_LINE_BYTES + 1)


def _array_rows(text: str, path: Path) -> Iterator[Row | DataError]:
    """Yields the elements of a JSON array, each with the line on which it begins."""
    at = _skip_space(text, text.index("[") + 1)
    line, counted, place = 1, 0, 0
    more = text[at : at + 1] != "]"
    while more:
        line, counted, place = line + text.count("\n", counted, at), at, place + 1
        value, at = _decode_element(text, at, path, line)
        yield value if isinstance(value, DataError) else _row(value, path, line, place=place)
        more = text[at : at + 1] != "]"
        if more and text[at : at + 1] != ",":
            raise DataError(
                path, f"not valid JSON (no ',' or ']' after this element of the array): {_CORRECT}", line=line
            )
        at = _skip_space(text, at + 1) if more else at
    if text[at + 1 :].strip():
        raise DataError(
            path, f"not valid JSON (something follows the array): {_CORRECT}", line=text.count("\n", 0, at) + 1
        )


def _decode_element(text: str, at: int, path: Path, line: int) -> tuple[Any | DataError, int]:
    """Returns the value that begins at `at`, or the error of a broken string in it, and where the next mark stands."""
    try:
        refuse_deep_json(text, at)
        value, end = json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise DataError(
            path, f"not valid JSON ({error.msg}, column {error.colno}): {_CORRECT}", line=error.lineno
        ) from error
    except NestedTooDeeply as error:
        raise DataError(path, f"JSON is {error}", line=line) from error
    except ValueError as error:
        raise DataError(path, f"not valid JSON {refusal(error, _CORRECT)}", line=line) from error
    if (fault := _fault(value, text, at, end)) is not None:
        value = DataError(path, fault, line=line)
    return value, _skip_space(text, end)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _row(value: Any, path: Path, number: int, unit: Unit = "line", place: int | None = None) -> Row | DataError:
    if not isinstance(value, dict):
        return DataError(path, f"a row must be a JSON object, not {_kind(value)}", line=number, unit=unit)
    return Row(path, number, value, unit, place)


def _decode(data: bytes, path: Path, *, line: int | None = None, unit: Unit = "line") -> str:
    try:
        return data.removeprefix(_UTF8_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        where = line if line is not None else data.count(b"\n", 0, error.start) + 1
        advice = f"not UTF-8 (byte {data[error.start]:#04x} {error.reason}): convert the file to UTF-8"
        raise DataError(path, advice, line=where, unit=unit) from error


def _fault(value: Any, text: str, start: int, end: int) -> str | None:
    """Returns why a value that text[start:end] decodes to is refused, else None. Looks only where the text gives cause."""
    broken = _broken_string(value) if _ESCAPED_SURROGATE.search(text, start, end) else None
    return None if broken is None else f"{broken} {_HALF}"


def _broken_string(value: Any, where: str = "") -> str | None:
    """Returns the place of a string with half a surrogate pair (`'prompt'`, `'messages[0].content'`), else None."""
    if isinstance(value, str):
        return f"'{where}'" if _LONE_SURROGATE.search(value) else None
    if isinstance(value, dict):
        for key, item in value.items():
            if _LONE_SURROGATE.search(key):
                return "a key"
            if (found := _broken_string(item, f"{where}.{key}" if where else key)) is not None:
                return found
    if isinstance(value, list):
        for place, item in enumerate(value):
            if (found := _broken_string(item, f"{where}[{place}]")) is not None:
                return found
    return None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _as_text(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        raise TypeError(f"holds bytes ({value[:20]!r} …), which are no text: leave this column out")
    return str(value)
