"""An index of a journal's finished rollouts: what lists filter and sort by, and a full-text search.

The journal is only read. The index is a file of its own, which ends with the process. It takes up new rollouts while
their run goes on (`update`).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lwz.data.templates import detect_language
from megatron_lwz.data.text.grammar import parse_response, quoted_tags
from megatron_lwz.data.text.length import count_units
from megatron_lwz.data.text.sameness import sameness
from megatron_lwz.errors import DataError
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.rollout.schema import FILE_ERRORS, one_line, prompt_from_json
from megatron_lwz.types import Prompt, WeightVersion
from megatron_lwz.ui.repetition import repeated_share
from megatron_lwz.ui.search import searchable

_TABLES = """
CREATE TABLE rollouts (
    key INTEGER PRIMARY KEY, group_id INTEGER NOT NULL, rollout INTEGER NOT NULL, kind TEXT NOT NULL,
    prompt_id TEXT NOT NULL, head TEXT NOT NULL, language TEXT NOT NULL, lower INTEGER, upper INTEGER,
    admitted INTEGER NOT NULL, reason TEXT NOT NULL, stop TEXT, fault TEXT,
    tokens INTEGER NOT NULL, words INTEGER NOT NULL, think INTEGER NOT NULL, repetition REAL,
    first_version INTEGER, last_version INTEGER, logprob REAL,
    UNIQUE (group_id, rollout)
);
CREATE INDEX prompts ON rollouts (prompt_id);
CREATE TABLE likeness (group_id INTEGER PRIMARY KEY, value REAL);  -- sameness of the siblings' answers, 0 … 1
CREATE VIRTUAL TABLE texts USING fts5(prompt, response, content='', tokenize="unicode61 remove_diacritics 0");
"""
_HEAD = 400
_PER_ROUND = 8
"""Rollouts after which an update ends, so that pages get their turn."""
_LATE = 2000
"""Groups among which a later one may be scored first."""


class Index:
    """The index of one journal, and a connection that sees both. Methods are safe from any thread."""

    def __init__(self, journal: Path, file: Path) -> None:
        """Makes the index in the new file `file`. Raises DataError if the journal cannot be read."""
        self.journal = journal
        with JournalReader(journal):  # says in one line what is wrong with the file
            pass
        self._lock = threading.Lock()
        self._ends = {"training": -1, "evaluation": 0}
        self._components: dict[str, None] = {}
        self._scored_from = -(1 << 62)
        self._open: dict[int, tuple[str, Prompt, int, int, set[int]]] = {}
        try:
            self._db = sqlite3.connect(
                file.resolve().as_uri(), uri=True, isolation_level=None, check_same_thread=False, timeout=5
            )
            self._db.execute("PRAGMA journal_mode = OFF")
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.executescript(_TABLES)
            self._db.execute("ATTACH ? AS journal", (f"{journal.resolve().as_uri()}?mode=ro",))
            tables = self._db.execute("SELECT name FROM journal.sqlite_master").fetchall()
        except FILE_ERRORS as error:
            raise DataError(journal, f"cannot be indexed: {one_line(error)}") from error
        self.tables = frozenset(name for (name,) in tables)
        """Tables of the journal. Older versions lack some."""

    def close(self) -> None:
        """Closes both files."""
        with self._lock:
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Gives the connection for a few reads of one moment. Raises DataError for a journal that is damaged."""
        with self._lock:
            try:
                self._db.execute("BEGIN")
                try:
                    yield self._db
                finally:
                    self._db.execute("COMMIT")
            except FILE_ERRORS as error:
                raise DataError(self.journal, f"cannot be read: {one_line(error)}") from error

    def rows(self, query: str, *values: object) -> list[Any]:
        """Returns the rows of one query."""
        with self.reading() as db:
            return db.execute(query, values).fetchall()

    def counts(self) -> tuple[int, int]:
        """Returns how many finished rollouts are in the index, and in the journal."""
        return self.rows("SELECT (SELECT count(*) FROM rollouts), (SELECT count(*) FROM journal.finished)")[0]

    def components(self) -> list[str]:
        """Returns the names of the reward components. Only groups that are new since the last call are looked at."""
        query = "SELECT DISTINCT component FROM journal.scores WHERE group_id >= ?"
        with self.reading() as db:
            self._components |= dict.fromkeys(name for (name,) in db.execute(query, (self._scored_from,)))
            (newest,) = db.execute("SELECT max(group_id) FROM journal.scores").fetchone()
        self._scored_from = max(self._scored_from, (newest or 0) - _LATE)
        return list(self._components)

    def update(self) -> int:
        """Takes up the next finished rollouts, of at most a few groups, and returns their number: 0 when all are there."""
        with self.reading() as db:
            self._admit(db)
            taken = 0
            for group in list(self._open):
                taken += self._take(db, group)
                if taken >= _PER_ROUND:
                    break
            return taken

    def _admit(self, db: sqlite3.Connection) -> None:
        """Notes new groups. Ids of training groups ascend, those of evaluations descend."""
        query = "SELECT id, kind, prompt, admitted, size FROM journal.groups WHERE id > ? OR id < ? LIMIT 2000"
        for group, kind, prompt, admitted, size in db.execute(
            query, (self._ends["training"], self._ends["evaluation"])
        ).fetchall():
            self._open[group] = (kind, _prompt(prompt), admitted, size, set())
        if self._open:
            self._ends["training"] = max(self._ends["training"], *self._open)
            self._ends["evaluation"] = min(self._ends["evaluation"], *self._open)

    def _take(self, db: sqlite3.Connection, group: int) -> int:
        kind, prompt, admitted, size, known = self._open[group]
        query = "SELECT rollout, reason, stop, text FROM journal.finished WHERE group_id = ?"
        if db.execute("SELECT count(*) FROM journal.finished WHERE group_id = ?", (group,)).fetchone()[0] == len(known):
            return 0
        rows = db.execute(query, (group,)).fetchall()
        answers = []
        for rollout, reason, stop, text in rows:
            parsed = parse_response(text, prompt.template, stop=stop, quoted=quoted_tags(prompt.text))
            answer = parsed.answer if parsed.answer is not None else text
            answers.append(answer)
            if rollout in known:
                continue
            asked = (prompt.length.lower, prompt.length.upper) if prompt.length else (None, None)
            facts = (group, rollout, kind, prompt.id, prompt.text[:_HEAD], detect_language(prompt.text), *asked)
            measured = (count_units(answer), count_units(parsed.think or ""), repeated_share(answer))
            tokens, *versions = self._tokens(db, group, rollout)
            row = (*facts, admitted, reason, stop, parsed.fault, tokens, *measured, *versions)
            key = db.execute(f"INSERT INTO rollouts VALUES (NULL{', ?' * len(row)})", row).lastrowid
            found = (key, searchable(prompt.text), searchable(text))
            db.execute("INSERT INTO texts (rowid, prompt, response) VALUES (?, ?, ?)", found)
        taken = len(rows) - len(known)
        known.update(rollout for rollout, *_ in rows)
        if len(known) == size:
            db.execute("INSERT OR REPLACE INTO likeness VALUES (?, ?)", (group, sameness(answers)))
            del self._open[group]
        return taken

    @staticmethod
    def _tokens(db: sqlite3.Connection, group: int, rollout: int) -> tuple[int, int | None, int | None, float | None]:
        """Returns the number of tokens, the steps of the first and last weights that wrote them, the mean log-prob."""
        query = "SELECT logprobs, version FROM journal.deltas WHERE group_id = ? AND rollout = ? ORDER BY start"
        rows = db.execute(query, (group, rollout)).fetchall()
        if not rows:
            return 0, None, None, None
        values = np.concatenate([np.frombuffer(blob, "<f4") for blob, _ in rows])
        first, last = (WeightVersion.parse(rows[place][1]).step for place in (0, -1))
        return len(values), first, last, float(values.mean()) if len(values) else None


def _prompt(text: str) -> Prompt:
    """Reads a prompt row; one that is not as it was written raises sqlite3.DataError."""
    try:
        return prompt_from_json(text)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise sqlite3.DataError(f"a prompt is not as it was written ({error!r:.200})") from error
