"""Reads files that people give us: text, JSON, and rows of JSONL, JSON arrays (plain or gzip) and Parquet.

One place decides about encodings, line numbers, sizes and broken characters, so every stage and tool treats a file
alike. A byte order mark is accepted and removed. Each fault is a DataError that names the file and the line.
"""

from __future__ import annotations

import gzip
import importlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from megatron_lwz.errors import DataError, EnvironmentSetupError

MAX_LINE_BYTES = 256 * 2**20
"""Longest line of a JSONL file. A longer one is almost always a file without line ends."""
MAX_DOCUMENT_BYTES = 2 * 2**30
"""Largest file that is read as one JSON or text document. Larger data belongs in JSONL or Parquet."""

_PARQUET_ROWS = 256
"""Number of Parquet rows in memory at once. It is small because a conversation may be long."""
_UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")
_HALF = "holds half a surrogate pair, which is no character: remove it"
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = " \t\r\n"


@dataclass(frozen=True)
class Row:
    """One row of a file. `number` counts from 1: lines of a JSON file, rows of a Parquet file."""

    path: Path
    number: int
    value: Mapping[str, Any]
    unit: Literal["line", "row"] = "line"

    @property
    def identity(self) -> str:
        """`file name:number`, an id for rows that bring none."""
        return f"{self.path.name}:{self.number}"

    def error(self, advice: object) -> DataError:
        """Returns the error that names this row and says `advice`."""
        return DataError(self.path, str(advice), line=self.number, unit=self.unit)


def read_text(path: Path | str) -> str:
    """Returns the text of a UTF-8 file, without its byte order mark. Raises DataError."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise DataError(path, f"is larger than {MAX_DOCUMENT_BYTES >> 30} GiB: split it, or give JSONL or Parquet")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(path, f"cannot be read ({_reason(error)})") from error
    return _decode(data, path)


def read_json(path: Path | str) -> Any:
    """Returns the value of a JSON file. Raises DataError."""
    return parse_json(read_text(path), path)


def read_object(path: Path | str) -> dict[str, Any]:
    """Returns the object of a JSON file. Raises DataError, also for any other value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(path, f"must hold a JSON object, not {_kind(value)}")
    return value


def parse_json(text: str, path: Path | str, *, line: int | None = None) -> Any:
    """Decodes JSON. Raises DataError: not JSON, nested too deeply, or half a surrogate pair in a string."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if line is not None else f"line {error.lineno}, column {error.colno}"
        raise DataError(path, f"not valid JSON ({error.msg}, {at})", line=line) from error
    except RecursionError as error:
        raise DataError(path, "JSON is nested too deeply", line=line) from error
    except ValueError as error:  # a number of more digits than Python converts
        raise DataError(path, f"not valid JSON ({_reason(error)})", line=line) from error
    if _ESCAPED_SURROGATE.search(text) and (broken := _broken_string(value)) is not None:
        raise DataError(path, f"{broken} {_HALF}", line=line)
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
            start = file.read(4)
            if start == b"PAR1":
                yield from _parquet_rows(path, columns)
                return
            file.seek(0)
            if start[:2] == b"\x1f\x8b":
                with gzip.open(file) as unpacked:
                    yield from _json_rows(unpacked, path)  # type: ignore[arg-type]  # GzipFile reads like a BinaryIO
            else:
                yield from _json_rows(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be read ({_reason(error)})") from error


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
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(path, f"not a Parquet file ({_reason(error)})") from error


def parse_row(data: bytes, path: Path, number: int) -> Row | DataError | None:
    """Decodes one line of a JSONL file: its row, the error, or None for a blank line."""
    try:
        text = _decode(data.rstrip(b"\r\n"), path, line=number)
        if not text.strip():
            return None
        return _row(parse_json(text, path, line=number), path, number)
    except DataError as error:
        return error


def _json_rows(file: BinaryIO, path: Path) -> Iterator[Row | DataError]:
    """Yields the rows of a JSON array or of JSON lines."""
    number, line = 1, file.readline(MAX_LINE_BYTES + 1)
    if line[:2] in _OTHER_BOMS:
        raise DataError(path, "is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)")
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
        raise DataError(path, "one object over several lines: give one object per line, or an array", line=number)
    while line:
        if len(line) > MAX_LINE_BYTES:
            raise DataError(path, f"is longer than {MAX_LINE_BYTES >> 20} MiB: give one row per line", line=number)
        if (row := parse_row(line, path, number)) is not None:
            yield row
        number, line = number + 1, file.readline(MAX_LINE_BYTES + 1)


def _array_rows(text: str, path: Path) -> Iterator[Row | DataError]:
    """Yields the elements of a JSON array, each with the line on which it begins."""
    at = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    more = text[at : at + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, at), at
        value, at = _decode_element(text, at, path, line)
        yield value if isinstance(value, DataError) else _row(value, path, line)
        more = text[at : at + 1] != "]"
        if more and text[at : at + 1] != ",":
            raise DataError(path, "not valid JSON (no ',' or ']' after this element of the array)", line=line)
        at = _skip_space(text, at + 1) if more else at
    if text[at + 1 :].strip():
        raise DataError(path, "not valid JSON (something follows the array)", line=text.count("\n", 0, at) + 1)


def _decode_element(text: str, at: int, path: Path, line: int) -> tuple[Any | DataError, int]:
    """Returns the value that begins at `at`, or the error of a broken string in it, and where the next mark stands."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise DataError(path, f"not valid JSON ({error.msg}, column {error.colno})", line=error.lineno) from error
    except RecursionError as error:
        raise DataError(path, "JSON is nested too deeply", line=line) from error
    except ValueError as error:
        raise DataError(path, f"not valid JSON ({_reason(error)})", line=line) from error
    broken = _broken_string(value) if _ESCAPED_SURROGATE.search(text, at, end) else None
    if broken is not None:
        value = DataError(path, f"{broken} {_HALF}", line=line)
    return value, _skip_space(text, end)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _parquet_rows(path: Path, columns: Callable[[Sequence[str]], Sequence[str]] | None) -> Iterator[Row | DataError]:
    file = open_parquet(path)
    wanted = list(columns(file.schema_arrow.names)) if columns is not None else None
    number = 0
    try:
        for batch in file.iter_batches(_PARQUET_ROWS, columns=wanted):
            for value in batch.to_pylist():
                number += 1
                yield Row(path, number, value, "row")
    except ValueError as error:
        raise DataError(path, f"cannot be read after row {number} ({_reason(error)})") from error


def _row(value: Any, path: Path, number: int) -> Row | DataError:
    if not isinstance(value, dict):
        return DataError(path, f"a row must be a JSON object, not {_kind(value)}", line=number)
    return Row(path, number, value)


def _decode(data: bytes, path: Path, *, line: int | None = None) -> str:
    try:
        return data.removeprefix(_UTF8_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        where = line if line is not None else data.count(b"\n", 0, error.start) + 1
        advice = f"not UTF-8 (byte {data[error.start]:#04x} {error.reason}): convert the file to UTF-8"
        raise DataError(path, advice, line=where) from error


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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split("\n")) or type(error).__name__
