"""Every reply a judge ever gave, in one SQLite file, so that none is paid for twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError

"""What the file is called in a run's folder, or an evaluation's."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
  key TEXT PRIMARY KEY, prompt_version TEXT NOT NULL, model TEXT NOT NULL, text TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, received REAL NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Reply:
    """A judge's words, and the model that the server says spoke them."""

    text: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


def cache_key(*parts: Any) -> str:
    """A digest of JSON values: judge model, its sampling settings, prompt version, the texts, which sample and attempt."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


class ReplyCache:
    """Replies by key. A reply is in the file when `put` returns: a killed process loses none that it had received.

    Several processes may share the file, on a local file system (WAL). `path` None keeps it in memory.
    """

    def __init__(self, path: Path | str | None) -> None:
        """Opens or creates the file. Raises DataError when it is not ours to use."""
        self._path = path
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                path or ":memory:", timeout=60.0, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise DataError(str(path), f"the judge's cache cannot be opened ({error})") from error

    def get(self, key: str) -> Reply | None:
        """The reply kept under `key`."""
        row = self._database.execute(
            "SELECT text, model, prompt_tokens, completion_tokens FROM replies WHERE key = ?", (key,)
        ).fetchone()
        return Reply(*row) if row else None

    def put(self, key: str, prompt_version: str, reply: Reply) -> None:
        """Keeps a reply; the first one under a key stays."""
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
        """Closes the file."""
        self._database.close()
