"""Reads requests from JSONL, JSON and Parquet files.

WildChat, LMSYS-Chat, LongWriter-Zero-RLData and any data set with the usual columns can be read. Parquet needs pyarrow
(the extra `data`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.data.requests import CONTEXTS, QUESTIONS, TALKS, lowered, with_context
from megatron_lwz.data.turns import first_request, is_empty
from megatron_lwz.errors import DataError
from megatron_lwz.reading import Row, files_below, scan_rows

_REQUESTS = (*TALKS, *QUESTIONS, "request", "input")
"""Columns that hold the request: turns, or the request itself. The first that is not empty counts."""
_OTHERS = ("user", "text")
"""Columns that hold the request in rows without the above. Beside them they often hold something else."""
IDS = ("id", "conversation_id", "conversation_hash", "uid", "uuid", "idx", "index")
LANGUAGES = ("language", "lang")
RANGES = ("length", "range", "length_range", "target_length")
_FLAGS = ("toxic", "flagged", "openai_moderation")
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
"""Names of the files that are taken from a folder."""
NO_REQUEST = "no request in the row"


@dataclass(frozen=True)
class Source:
    """One request of a data set.

    `tag`: the data set's own language label. `asked`: the data set's own length range. `after_system`: a system text
    stood before the request; it is not part of it.
    """

    text: str
    file: str
    id: str | None = None
    tag: str | None = None
    flagged: bool = False
    asked: tuple[int, int] | None = None
    after_system: bool = False


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Returns the named files and the files in the named folders, in a fixed order. Raises DataError.

    A named file may have any name. From a folder only files with the usual suffixes are taken, and none that is hidden
    (`._a.jsonl` of macOS, `.cache/`).
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [file for file in files_below(path) if file.name.lower().endswith(_SUFFIXES)]
            if not inside:
                raise DataError(
                    path,
                    f"no {', '.join(_SUFFIXES)} file in this folder (hidden ones are not read): name the file itself",
                )
            found += inside
        elif not path.exists():
            raise DataError(path, "no such file or folder: check the path")
        else:
            found.append(path)
    return found


def read_sources(path: Path, column: str | None = None) -> Iterator[Source | DataError]:
    """Yields the requests of one file, and the error in place of each row that has none or cannot be read.

    `column` names the column of the request; None searches the known names, in upper or lower case, in every row. Two
    columns that differ only in case are an error of the row. Raises DataError when no column is
    found (it lists those present), or when not a single row has a request (it names the first fault).
    """
    names = (column,) if column is not None else (*_REQUESTS, *_OTHERS)
    first_fault: DataError | None = None
    rows, requests = 0, 0

    def wanted(present: Sequence[str]) -> list[str]:
        _check_columns(path, present, column)
        known = (*names, *CONTEXTS, *IDS, *LANGUAGES, *RANGES, *_FLAGS)
        return [name for name in present if (name if column is not None else name.lower()) in known]

    for row in scan_rows(path, columns=wanted):
        found = row if isinstance(row, DataError) else _source(row, names, column)
        if isinstance(row, Row) and rows == 0:
            _check_columns(path, list(row.value), column)
        rows += isinstance(row, Row)
        if isinstance(found, DataError):
            first_fault = first_fault or found
        else:
            requests += 1
        yield found
    if not requests:
        raise first_fault or DataError(path, "holds no row: give a file with rows")


def _check_columns(path: Path, present: Sequence[str], column: str | None) -> None:
    """Raises DataError that lists the columns present if `column`, or else every known name, is missing."""
    known = (*_REQUESTS, *_OTHERS)
    if column is not None:
        wanted, found = f"no column {column!r}", column in present
    else:
        wanted, found = f"none of the columns {', '.join(known)}", any(str(name).lower() in known for name in present)
    if not found:
        raise DataError(path, f"{wanted}; present are: {', '.join(map(str, present)) or 'none'}")


def _source(row: Row, names: Sequence[str], column: str | None) -> Source | DataError:
    try:
        value = lowered(row.value) if column is None else row.value
        text, after_system = _request(value, names)
    except ValueError as error:
        return row.error(error)
    if text is None or not text.strip():
        return row.error(NO_REQUEST)
    tag, identity = _first(value, LANGUAGES), _first(value, IDS)
    return Source(
        text.strip(),
        row.path.name,
        id=str(identity) if isinstance(identity, (str, int)) else None,
        tag=tag if isinstance(tag, str) else None,
        flagged=any(_is_flagged(value.get(name)) for name in _FLAGS),
        asked=_range(_first(value, RANGES)),
        after_system=after_system,
    )


def _request(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str | None, bool]:
    """Returns (the request of a row, whether a system text stands before it): the user's first turn, or a text."""
    names = [name for name in names if name in row]
    names = [name for name in names if name not in _OTHERS] or names
    name = next((name for name in names if not is_empty(row[name])), None)
    if name is None:
        return None, False
    text, after_system = first_request(row[name], name)
    if text is not None and isinstance(row[name], str) and name in QUESTIONS:
        text = with_context(text, row, set())
    return text, after_system


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
