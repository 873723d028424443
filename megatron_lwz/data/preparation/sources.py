"""Reads requests from JSONL, JSON and Parquet files.

WildChat, LMSYS-Chat, LongWriter-Zero-RLData and any data set with the usual columns can be read. Parquet needs pyarrow
(the extra `data`).
"""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megatron_lwz.errors import DataError, EnvironmentSetupError

TALKS = ("conversation", "conversations", "messages", "chat")
"""Columns that hold turns, `{"role", "content"}` or `{"from", "value"}`. The user's first turn is the request."""
TEXTS = ("prompt", "query", "instruction", "question", "request", "input", "user", "text")
"""Columns that hold the request itself, or turns."""
IDS = ("id", "conversation_id", "conversation_hash", "uid", "uuid", "idx", "index")
LANGUAGES = ("language", "lang")
RANGES = ("length", "range", "length_range", "target_length")
_FLAGS = ("toxic", "flagged", "openai_moderation")
_USERS = ("user", "human", "prompter")
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
_BATCH = 256
"""Number of Parquet rows in memory at once. It is small because a conversation may be long."""


@dataclass(frozen=True)
class Source:
    """One request of a data set. `tag`: the data set's own language label. `asked`: the data set's own length range."""

    text: str
    file: str
    id: str | None = None
    tag: str | None = None
    flagged: bool = False
    asked: tuple[int, int] | None = None


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Returns the named files and the files in the named folders, in a fixed order. Raises DataError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.name.lower().endswith(_SUFFIXES))
            if not inside:
                raise DataError(path, f"no {', '.join(_SUFFIXES)} file in this folder")
            found += inside
        elif not path.is_file():
            raise DataError(path, "no such file or folder")
        elif not path.name.lower().endswith(_SUFFIXES):
            raise DataError(path, f"must end in one of {', '.join(_SUFFIXES)}")
        else:
            found.append(path)
    return found


def read_sources(path: Path, column: str | None = None) -> Iterator[Source | None]:
    """Yields the requests of one file, None for a row without one.

    `column` names the column of the request; None searches the known names. Raises DataError when no column is found
    (it lists those present) or when the file cannot be read.
    """
    rows = _parquet_rows(path, column) if path.suffix.lower() == ".parquet" else _json_rows(path)
    chosen: str | None = None
    for row in rows:
        if row is None:
            yield None
            continue
        if chosen is None:
            chosen = choose_column(path, list(row), column)
        yield _source(row, chosen, path.name)


def read_objects(path: Path) -> Iterator[Mapping[str, Any] | None]:
    """Yields every row of one file with all its columns, None for a line that is no JSON object. Raises DataError."""
    if path.suffix.lower() != ".parquet":
        yield from _json_rows(path)
        return
    for batch in _parquet_file(path).iter_batches(_BATCH):
        yield from batch.to_pylist()


def choose_column(path: Path, present: Sequence[str], asked: str | None) -> str:
    """Returns the name of the column with the request. Raises DataError that lists the columns present."""
    known = (asked,) if asked is not None else (*TALKS, *TEXTS)
    for name in known:
        if name in present:
            return name
    wanted = f"no column {asked!r}" if asked is not None else f"none of the columns {', '.join(known)}"
    raise DataError(path, f"{wanted}; present are: {', '.join(map(str, present)) or 'none'}")


def _source(row: Mapping[str, Any], column: str, file: str) -> Source | None:
    text = _request(row.get(column))
    if text is None or not text.strip():
        return None
    tag, identity = _first(row, LANGUAGES), _first(row, IDS)
    return Source(
        text.strip(),
        file,
        id=str(identity) if isinstance(identity, (str, int)) else None,
        tag=tag if isinstance(tag, str) else None,
        flagged=any(_is_flagged(row.get(name)) for name in _FLAGS),
        asked=_range(_first(row, RANGES)),
    )


def _request(value: Any) -> str | None:
    """Returns a text unchanged; of a list of turns, returns the user's first one."""
    if isinstance(value, str):
        return value
    for turn in value if isinstance(value, list) else ():
        if isinstance(turn, Mapping):
            role, said = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
            if isinstance(role, str) and role.lower() in _USERS:
                return said if isinstance(said, str) else None
    return None


def _is_flagged(value: Any) -> bool:
    """Returns whether the request is flagged. LMSYS and WildChat have one verdict per turn; the first is used."""
    if isinstance(value, list):
        value = value[0] if value else False
    if isinstance(value, Mapping):
        value = value.get("flagged", False)
    return value is True


def _range(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Mapping):
        value = [value.get("lower"), value.get("upper")]
    if isinstance(value, list) and len(value) == 2 and all(type(bound) is int for bound in value):
        return value[0], value[1]
    return None


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _json_rows(path: Path) -> Iterator[Mapping[str, Any] | None]:
    """Yields the objects of a JSONL file or of one JSON array, None for a line or element that is no object."""
    try:
        with _open(path) as file:
            start = file.read(1)
            file.seek(0)
            whole = start == "[" and ".jsonl" not in path.name.lower()
            for item in json.load(file) if whole else map(_decoded, file):
                if item != "":
                    yield item if isinstance(item, Mapping) else None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(path, f"cannot be read ({error})") from error


def _decoded(line: str) -> Any:
    if not line.strip():
        return ""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parquet_rows(path: Path, column: str | None) -> Iterator[Mapping[str, Any]]:
    """Yields rows with only the columns that are needed."""
    file = _parquet_file(path)
    present = file.schema_arrow.names
    wanted = {choose_column(path, present, column), *IDS, *LANGUAGES, *RANGES, *_FLAGS}
    for batch in file.iter_batches(_BATCH, columns=[name for name in present if name in wanted]):
        yield from batch.to_pylist()


def _parquet_file(path: Path) -> Any:
    parquet = _pyarrow()
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow's own exception classes cannot be named without importing it
        raise DataError(path, f"not a Parquet file ({error})") from error


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise EnvironmentSetupError(
            "reading Parquet needs pyarrow, which is not installed: pip install 'megatron-lwz[data]'"
        ) from error
