"""Stores unfinished responses, so that generation can resume them after the process was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megatron_lwz.errors import DataError, refusal
from megatron_lwz.private_files import make_private
from megatron_lwz.reading import Row, parse_row
from megatron_lwz.writing import replacing

Key = tuple[str, int]
"""Key of a response: (task id, sample)."""


@dataclass(frozen=True)
class Partial:
    """The beginning of a response, and its number of tokens."""

    text: str = ""
    tokens: int = 0


class Partials:
    """The file `<responses>.partial.jsonl`: pieces of text in the order received.

    `flush` makes them durable. A line that a kill truncated is dropped. Responses with other settings are not resumed.
    Only the process that holds the response file may use it.
    """

    def __init__(self, responses: Path, settings: Mapping[str, Any], done: Collection[Key]) -> None:
        """Reads the existing file, if any, without the responses that are `done`. Raises DataError."""
        self._path = responses.with_name(responses.name + ".partial.jsonl")
        self._settings = json.loads(json.dumps(dict(settings)))
        self._held: dict[Key, Partial] = {}
        self._waiting: dict[Key, Partial] = {}
        self._file: IO[bytes] | None = None
        if self._path.exists():
            self._read(done)
            self._compact()

    def get(self, key: Key) -> Partial:
        """Returns the response so far."""
        return self._held.get(key, Partial())

    def add(self, key: Key, text: str, tokens: int) -> None:
        """Appends the next piece of a response."""
        for pieces in (self._held, self._waiting):
            before = pieces.get(key, Partial())
            pieces[key] = Partial(before.text + text, before.tokens + tokens)

    def drop(self, key: Key) -> None:
        """Removes a response that is done."""
        self._held.pop(key, None)
        self._waiting.pop(key, None)

    def flush(self) -> None:
        """Writes all pieces added so far to disk, durably. Raises DataError."""
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        try:
            if self._file is None:
                make_private(self._path)
                self._file = self._path.open("wb")
                self._file.write(_line({"settings": self._settings}))
            self._file.writelines(_row(key, piece) for key, piece in waiting.items())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(self._path, f"cannot be written {refusal(error)}") from error

    def close(self) -> None:
        """Flushes and closes the file. Deletes it when no response is unfinished."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None
        if not self._held:
            self._path.unlink(missing_ok=True)

    def _read(self, done: Collection[Key]) -> None:
        lines = self._path.read_bytes().split(b"\n")[:-1]  # text after the last newline is a truncated line
        for number, line in enumerate(lines, start=1):
            row = parse_row(line, self._path, number)
            try:
                if not isinstance(row, Row):
                    raise ValueError("a blank line" if row is None else row.advice)
                if number == 1:
                    if row.value["settings"] != self._settings:
                        return
                    continue
                key = (str(row.value["id"]), int(row.value["sample"]))
                if key not in done:
                    before = self.get(key)
                    self._held[key] = Partial(before.text + row.value["text"], before.tokens + int(row.value["tokens"]))
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                advice = f"damaged ({error!r}): remove it, unfinished responses then begin anew"
                raise DataError(self._path, advice, line=number) from error

    def _compact(self) -> None:
        with replacing(self._path, durable=True, private=True) as file:
            file.write(_line({"settings": self._settings}))
            file.writelines(_row(key, piece) for key, piece in self._held.items())
        self._file = self._path.open("ab")


def _row(key: Key, piece: Partial) -> bytes:
    return _line({"id": key[0], "sample": key[1], "text": piece.text, "tokens": piece.tokens})


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
