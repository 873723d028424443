"""Whether a journal is whole, and is the one of the checkpoint that its run continues from."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from megatron_lwz.errors import DataError
from megatron_lwz.rollout.recovery import OPEN
from megatron_lwz.rollout.schema import FILE_ERRORS, SUMMED, check_schema, one_line, row_sum
from megatron_lwz.run_paths import free_ending
from megatron_lwz.units import GIB

THOROUGH_BYTES = GIB
"""Up to this size SQLite's whole check runs at take-up, which also compares indexes; above it the quick one."""
LOST = ".lost"
"""Ending of the name under which a journal that cannot be used is kept."""

_SYSTEM = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM,
)  # fmt: skip
"""Errors of the system, not of the file's content."""

log = logging.getLogger(__name__)


class UnusableJournal(DataError):
    """The journal is damaged, or it is not the one of the run's checkpoint."""

    def __init__(self, path: Path, fault: str) -> None:
        way = f"restore it from a copy, or go on with a new one: rollout.new_journal=true (this one stays as *{LOST})"
        super().__init__(path, f"{fault}: {way}")


def check_journal(path: Path, step: int = 0) -> None:
    """Checks the journal of a run that continues from `step`, if there is one, without touching any file.

    Raises UnusableJournal; DataError for a schema of another release. A journal that was not closed in order is checked
    when it is opened: a part of it is in its WAL.
    """
    if not path.exists():
        if unclean(path):
            raise UnusableJournal(path, f"is missing, but its write-ahead log {_wal(path).name} is there")
        if step > 0:
            raise UnusableJournal(path, f"is missing, but the checkpoint is of step {step}")
        return
    if unclean(path):
        return
    with _as_damage(path), closing(sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)) as db:
        check_sound(db, path)
        check_reaches(db, path, step)


def unclean(path: Path) -> bool:
    """Whether the journal was not closed in order."""
    log = _wal(path)
    return log.exists() and log.stat().st_size > 0


def check_sound(db: sqlite3.Connection, path: Path) -> None:
    """Checks the file's structure, and the rows that a run reads when it goes on. Raises UnusableJournal, DataError."""
    with _as_damage(path):
        try:
            check_schema(db, path, may_be_empty=True)
        except DataError as error:
            if error.advice.startswith("journal schema"):  # another release's
                raise
            raise UnusableJournal(path, error.advice) from error
        thorough = path.stat().st_size <= THOROUGH_BYTES
        (said, *_) = db.execute(f"PRAGMA {'integrity' if thorough else 'quick'}_check(1)").fetchone()
        if said != "ok":
            raise UnusableJournal(path, f"is damaged ({' '.join(said.split())[:200]})")
        _check_rows(db, path)


def check_reaches(db: sqlite3.Connection, path: Path, step: int) -> None:
    """Raises UnusableJournal unless the journal says what `step` trained on. Every checkpoint's journal does."""
    if step == 0:
        return
    with _as_damage(path):
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            raise UnusableJournal(path, f"is empty, but the checkpoint is of step {step}")
        if db.execute("SELECT 1 FROM trained WHERE step = ?", (step,)).fetchone() is None:
            last = db.execute("SELECT max(step) FROM trained").fetchone()[0] or 0
            fault = f"is not the checkpoint's: it does not know step {step}, from which the run continues (it ends at {last})"
            raise UnusableJournal(path, fault)


def keep_lost(path: Path) -> None:
    """Gives a journal that cannot be used another name, with its write-ahead log."""
    ending = free_ending(path, LOST)
    for suffix in ("", "-wal", "-shm"):
        if (found := path.with_name(path.name + suffix)).exists():
            found.rename(path.with_name(path.name + ending + suffix))


def _check_rows(db: sqlite3.Connection, path: Path) -> None:
    """Compares the rows with the sums in them: those of open groups, and all rows of small tables."""
    db.create_function("row_sum", -1, lambda *row: row_sum(row), deterministic=True)
    for table in SUMMED:
        columns = [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")]
        if "sum" not in columns:  # written by an earlier version
            continue
        values = [name for name in columns if name != "sum"]
        of_open = f" AND group_id IN (SELECT id FROM groups WHERE {OPEN})"
        groups = {"groups": f" AND {OPEN}"} | dict.fromkeys(
            ("deltas", "finished", "scores", "alarms", "advantages"), of_open
        )
        query = f"SELECT {values[0]} FROM {table} WHERE sum IS NOT NULL AND sum <> row_sum({', '.join(values)})"
        if (row := db.execute(query + groups.get(table, "") + " LIMIT 1").fetchone()) is not None:
            raise UnusableJournal(path, f"is damaged (table {table}, {values[0]} {row[0]}: not as it was written)")


@contextmanager
def _as_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FILE_ERRORS as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _SYSTEM:
            raise DataError(path, f"the journal cannot be read: {one_line(error)}") from error
        raise UnusableJournal(path, f"is damaged ({one_line(error)})") from error


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")
