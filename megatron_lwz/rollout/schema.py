"""The journal's tables, and the conversion of values to columns."""

from __future__ import annotations

import json
import math
import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lwz.errors import DataError
from megatron_lwz.types import ComponentScore, LengthRange, Prompt

APPLICATION_ID = 0x4C575A4A
SCHEMA_VERSION = 6
FILE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What reading a damaged file raises. The second: SQLite's own message quotes bytes that are no text."""
_FIRST_SUMS = 4
OLDEST_VERSION = 1
"""Oldest supported version. Journals from it on can be read as they are. A journal becomes SCHEMA_VERSION when it is
next opened for writing.

Version 1 lacks the tables of ADDITIONS. In versions 1 and 2, `trained.group_ids` was named `micro_batches`. Up to version
3 rows have no `sum`. Up to version 4 there is no table `advantages`, up to version 5 none of the curriculum.
"""
_REASONS = "reasons"
"""Key of a score's reasons among its details."""
SUMMED = (
    "groups",
    "deltas",
    "finished",
    "scores",
    "consumed",
    "dropped",
    "trained",
    "excluded",
    "alarms",
    "advantages",
    "draws",
    "outcomes",
    "stages",
)
"""Tables whose last column `sum` is the row_sum of the others (NULL in rows of older versions)."""

_SINCE = {"advantages": 5, "draws": 6, "outcomes": 6, "stages": 6}
"""Table → the version that it came with, for those that came after the sums."""

TABLES = """
CREATE TABLE groups (
    id INTEGER PRIMARY KEY,        -- training: 0, 1, … in order of admission; evaluation: -1, -2, …
    kind TEXT NOT NULL,            -- training | evaluation
    prompt TEXT NOT NULL,          -- the prompt row, JSON
    prompt_tokens BLOB NOT NULL,   -- the rendered prompt: int32, little endian
    admitted INTEGER NOT NULL,     -- trainer step it was admitted for
    size INTEGER NOT NULL          -- rollouts
);
CREATE TABLE deltas (
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL,
    start INTEGER NOT NULL,        -- position of the first token in the response
    tokens BLOB NOT NULL,          -- int32, little endian
    logprobs BLOB NOT NULL,        -- float32, little endian, equally many
    version TEXT NOT NULL,         -- weights that wrote them: step.attempt.checksum
    PRIMARY KEY (group_id, rollout, start)
) WITHOUT ROWID;
CREATE TABLE finished (
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL,
    reason TEXT NOT NULL, stop TEXT, text TEXT NOT NULL,
    PRIMARY KEY (group_id, rollout)
) WITHOUT ROWID;
CREATE TABLE scores (
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL, component TEXT NOT NULL,
    value REAL, valid INTEGER NOT NULL,
    details TEXT NOT NULL,         -- numbers by name, and `reasons`: [about, words] of a judge; JSON
    version TEXT NOT NULL,
    PRIMARY KEY (group_id, rollout, component)
) WITHOUT ROWID;
CREATE TABLE consumed (group_id INTEGER PRIMARY KEY, step INTEGER NOT NULL);
CREATE TABLE dropped (group_id INTEGER PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE checkpoints (step INTEGER PRIMARY KEY);
CREATE TABLE trained (step INTEGER PRIMARY KEY, group_ids TEXT NOT NULL);  -- in the step's order, JSON
"""

ADDITIONS = """
CREATE TABLE IF NOT EXISTS excluded (  -- rollouts without a weight in the loss, of groups that were trained on
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (group_id, rollout)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alarms (  -- where rules of the stream guard held, of rollouts that have ended
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL,
    position INTEGER NOT NULL,     -- tokens of the response then
    rule TEXT NOT NULL,
    stopped INTEGER NOT NULL,      -- 1: the rollout was ended there
    scores TEXT NOT NULL,          -- component → the score that it was given, JSON
    PRIMARY KEY (group_id, rollout, position, rule)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS advantages (  -- of groups that were trained on
    group_id INTEGER NOT NULL, rollout INTEGER NOT NULL,
    value REAL,                    -- what every token of the rollout was weighed with
    parts TEXT NOT NULL,           -- component → what it adds to the value, JSON
    PRIMARY KEY (group_id, rollout)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS draws (  -- how the curriculum came to a group's prompt
    group_id INTEGER PRIMARY KEY,
    stage TEXT NOT NULL,
    epoch INTEGER NOT NULL,        -- of the stage's pool, from 0
    most_tokens INTEGER NOT NULL   -- limit of the group's rollouts
);
CREATE TABLE IF NOT EXISTS outcomes (  -- what groups said about their prompts; a repeated step replaces its own
    group_id INTEGER PRIMARY KEY,
    step INTEGER NOT NULL,         -- that trained on it, or in which it was replaced
    success REAL,                  -- share of the rollouts that succeeded
    value REAL                     -- mean of the metric by which the stage ends
);
CREATE TABLE IF NOT EXISTS stages (step INTEGER PRIMARY KEY, stage TEXT NOT NULL, value REAL);  -- value: at its beginning
"""
"""Tables that a journal of an older version may lack until it is next opened for writing."""


def check_schema(db: sqlite3.Connection, path: Path, *, may_be_empty: bool = False) -> None:
    """Raises DataError unless the file is a journal that this code understands."""
    empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    application, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if empty and may_be_empty:
        return
    if application != APPLICATION_ID:
        raise DataError(path, "not a rollout journal: name the folder of a GRPO run, or restore the file from a copy")
    if not OLDEST_VERSION <= version <= SCHEMA_VERSION:
        known = f"{OLDEST_VERSION} to {SCHEMA_VERSION}"
        raise DataError(path, f"journal schema {version}, this release reads {known}: use the release that wrote it")


def update_schema(db: sqlite3.Connection) -> None:
    """Creates the tables of an empty file, or updates a journal of an older version to this one, in one transaction."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    changes = ""
    if version == 0:
        changes = f"PRAGMA application_id = {APPLICATION_ID};{TABLES}"
    elif version < 3:
        changes = "ALTER TABLE trained RENAME COLUMN micro_batches TO group_ids;"
    without = [table for table in SUMMED if version < _SINCE.get(table, _FIRST_SUMS)]
    sums = "".join(f"ALTER TABLE {table} ADD COLUMN sum INTEGER;" for table in without)
    db.executescript(f"BEGIN IMMEDIATE;{changes}{ADDITIONS}{sums}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")


def row_sum(row: Sequence[Any]) -> int:
    """Returns the CRC-32 of a row's values, as SQLite gives them back: int, float, str, bytes or None."""
    found = 0
    for value in row:
        found = zlib.crc32(value if isinstance(value, bytes) else repr(value).encode(), found)
    return found


def one_line(error: Exception) -> str:
    """Returns the error's message in one line: SQLite quotes the bytes that it cannot read."""
    return " ".join(str(error).split())[:300]


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Packs tokens as int32, little endian."""
    return np.asarray(tokens, "<i4").tobytes()


def unpack_tokens(blob: bytes) -> list[int]:
    """Inverse of `pack_tokens`."""
    return np.frombuffer(blob, "<i4").tolist()


def pack_logprobs(logprobs: Sequence[float]) -> bytes:
    """Packs log-probs as float32, little endian."""
    return np.asarray(logprobs, "<f4").tobytes()


def unpack_logprobs(blob: bytes) -> list[float]:
    """Inverse of `pack_logprobs` for values that are float32 already."""
    return np.frombuffer(blob, "<f4").tolist()


def prompt_to_json(prompt: Prompt) -> str:
    """Returns all fields of a prompt row as JSON.

    Raises TypeError if `extra` holds values that JSON cannot represent.
    """
    return json.dumps(asdict(prompt) | {"extra": dict(prompt.extra)}, ensure_ascii=False)


def prompt_from_json(text: str) -> Prompt:
    """Inverse of `prompt_to_json`."""
    row = json.loads(text)
    return Prompt(**row | {"length": LengthRange(**row["length"]) if row["length"] else None})


def details_to_json(score: ComponentScore) -> str:
    """Returns the details and the reasons of a score as JSON. Half characters (lone surrogates) become "?"."""
    reasons = {_REASONS: [list(reason) for reason in score.reasons]} if score.reasons else {}
    return json.dumps(dict(score.details) | reasons, ensure_ascii=False).encode("utf-8", "replace").decode()


def score_from_row(value: float | None, valid: int, details: str, version: str) -> ComponentScore:
    """Returns a score as the table `scores` holds it."""
    found = json.loads(details)
    reasons = tuple((str(about), str(text)) for about, text in found.pop(_REASONS, ()))
    return ComponentScore(math.nan if value is None else value, bool(valid), found, version, reasons)
