"""Cache of every reply of a judge, in one SQLite file, so that no reply is paid for twice."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError
from megatron_lwz.private_files import make_private

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
  key TEXT PRIMARY KEY, prompt_version TEXT NOT NULL, model TEXT NOT NULL, text TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, received REAL NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Reply:
    """A judge's reply, and the name of the model according to the server."""

    text: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


def cache_key(*parts: Any) -> str:
    """Returns a digest of JSON values: judge model, sampling settings, prompt version, texts, sample and attempt."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


class ReplyCache:
    """Replies by key.

    A reply is in the file when `put` returns, so a killed process loses no reply that it had received. Several
    processes may share the file, on a local file system (WAL). `path` None keeps it in memory.
    """

    def __init__(self, path: Path | str | None) -> None:
        """Checks that the file can be opened or made. Changes nothing: a run that does not begin leaves no file.

        Raises DataError.
        """
        self._path = Path(path) if path is not None else None
        if self._path is not None:
            self._check(self._path)

    @cached_property
    def _database(self) -> sqlite3.Connection:
        """The file, opened or made by the first use. Raises DataError."""
        path = self._path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                make_private(path)
            database = sqlite3.connect(path or ":memory:", timeout=60.0, isolation_level=None, check_same_thread=False)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise self._cannot_be_opened(error) from error
        return database

    def _check(self, path: Path) -> None:
        try:
            if path.exists():  # sqlite3 opens it: another descriptor, once closed, would end the locks on the file
                with closing(sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)) as database:
                    database.execute("PRAGMA schema_version").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise self._cannot_be_opened(error) from error
        place = next(folder for folder in path.absolute().parents if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise self._cannot_be_opened(f"{place} is no folder that can be written")

    def _cannot_be_opened(self, reason: object) -> DataError:
        return DataError(str(self._path), f"the judge's cache cannot be opened ({reason})")

    def get(self, key: str) -> Reply | None:
        """Returns the reply stored under `key`, None if there is none. Raises DataError for a damaged file."""
        query = "SELECT text, model, prompt_tokens, completion_tokens FROM replies WHERE key = ?"
        try:
            row = self._database.execute(query, (key,)).fetchone()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(str(self._path), f"the judge's cache is damaged ({reason}): move it away") from error
        return Reply(*row) if row else None

    def put(self, key: str, prompt_version: str, reply: Reply) -> None:
        """Stores a reply. The first one under a key stays. Raises DataError if it cannot be stored."""
        values = (reply.model, reply.text, reply.prompt_tokens, reply.completion_tokens, time.time())
        try:
            self._database.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", (key, prompt_version, *values)
            )
        except sqlite3.Error as error:
            raise DataError(str(self._path), f"a judge's reply cannot be kept ({error})") from error

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM replies").fetchone()[0]

    def close(self) -> None:
        """Closes the file, if it was used."""
        if "_database" in vars(self):
            self._database.close()
