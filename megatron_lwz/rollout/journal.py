"""The durable record of a run's rollouts: one SQLite file that serves as queue, replay buffer and crash recovery.

A row is durable once the `commit` that holds it has returned (WAL, `synchronous=FULL`). Before that, rows wait in
memory, so that the deltas of many rollouts share one disk flush.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from megatron_lwz.errors import DataError
from megatron_lwz.file_lock import FileLock, LockHeld, lock_of
from megatron_lwz.private_files import make_private
from megatron_lwz.rollout import recovery
from megatron_lwz.rollout.curriculum import Begun, Draw, History, Outcome
from megatron_lwz.rollout.drafts import Draft, GroupDraft, Kind
from megatron_lwz.rollout.journal_check import (
    UnusableJournal,
    check_journal,
    check_reaches,
    check_sound,
    keep_lost,
    unclean,
)
from megatron_lwz.rollout.lengths import GroupLengths
from megatron_lwz.rollout.schema import (
    FILE_ERRORS,
    check_schema,
    details_to_json,
    one_line,
    pack_logprobs,
    pack_tokens,
    prompt_to_json,
    row_sum,
    update_schema,
)
from megatron_lwz.types import ComponentScore, TokenDelta

AdvantageRecord = tuple[float, Mapping[str, float]]
"""A rollout's advantage, and component → what it adds to the advantage."""
Answer = TypeVar("Answer")
_REPLACED = ("consumed", "dropped", "trained", "draws", "outcomes", "stages")
"""Tables whose rows a repeated step writes again."""

log = logging.getLogger(__name__)


class Journal:
    """The only writer of the run's journal.

    Methods are safe from any thread. They only queue rows; `commit` makes them durable. `exclusive` is for network file
    systems, where WAL's shared memory does not work: before `close`, no other process can read the file, only a
    `snapshot`. Raises DataError if another process writes the journal, if the file is not a journal, or if its schema
    version is newer; UnusableJournal for one that was not closed in order and is damaged. Later it raises DataError
    whenever the disk fails.
    """

    def __init__(self, path: Path, *, exclusive: bool = False, first: int = 0) -> None:
        """`first` is the id of the first training group of a journal without one."""
        self.path = path
        self._exclusive = exclusive
        self._first = first
        self._queue_lock = threading.Lock()
        self._database_lock = threading.Lock()
        self._rows: list[tuple[str, tuple[Any, ...]]] = []
        self._deltas: dict[tuple[int, int], tuple[int, TokenDelta]] = {}
        self._undurable = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FileLock(lock_of(path))
        except LockHeld as held:
            raise DataError(path, f"{held.holder} writes this journal; is the run already going?") from held
        try:
            check = unclean(path)
            make_private(path)
            self._db = self._guarded(lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False))
            self._guarded(lambda: self._open(exclusive, check))
        except BaseException:
            self._lock.release()
            raise

    @property
    def undurable(self) -> int:
        """Number of received tokens that are not on disk yet."""
        return self._undurable

    def admit(self, group: GroupDraft) -> None:
        """Records a new group: its prompt and the tokens of the rendered prompt."""
        prompt = prompt_to_json(group.prompt)
        row = (group.id, group.kind, prompt, pack_tokens(group.prompt_tokens), group.admitted, len(group.drafts))
        self._insert("groups", row)

    def extend(self, draft: Draft, start: int, delta: TokenDelta) -> None:
        """Records a rollout's tokens from position `start` on. Deltas between two commits become one row."""
        key = (draft.group, draft.index)
        with self._queue_lock:
            self._undurable += len(delta.tokens)
            waiting = self._deltas.pop(key, None)
            if waiting is not None:
                first, before = waiting
                if before.version == delta.version:
                    merged = TokenDelta(before.tokens + delta.tokens, before.logprobs + delta.logprobs, delta.version)
                    self._deltas[key] = (first, merged)
                    return
                self._rows.append(_delta_row(key, first, before))
            self._deltas[key] = (start, delta)

    def finish(self, draft: Draft) -> None:
        """Records the end of a rollout. Raises ValueError if it is unfinished."""
        if draft.reason is None:
            raise ValueError(f"rollout {draft.id} is unfinished")
        row = (draft.group, draft.index, draft.reason.value, draft.stop, draft.text)
        self._insert("finished", row)
        for alarm in draft.alarms:
            given = json.dumps(dict(alarm.scores))
            noted = (draft.group, draft.index, alarm.position, alarm.rule, int(alarm.stopped), given)
            self._insert("alarms", noted)

    def score(self, group: int, scores: Sequence[Mapping[str, ComponentScore]]) -> None:
        """Records all scores of a group. They replace the earlier ones."""
        self._queue("DELETE FROM scores WHERE group_id = ?", (group,))
        for index, components in enumerate(scores):
            for name, score in components.items():
                value = float(score.value) if math.isfinite(score.value) else None
                row = (group, index, name, value, int(score.valid), details_to_json(score), score.version)
                self._insert("scores", row)

    def consume(self, groups: Sequence[int], step: int) -> None:
        """Records that training step `step` used these groups."""
        for group in groups:
            self._insert("consumed", (group, step))

    def exclude(self, group: int, reasons: Mapping[int, str]) -> None:
        """Records why rollouts of a trained group have no weight in the loss. Replaces earlier records of the group.

        `reasons`: index of the rollout → reason.
        """
        self._queue("DELETE FROM excluded WHERE group_id = ?", (group,))
        for index, reason in reasons.items():
            self._insert("excluded", (group, index, reason))

    def note_advantages(self, group: int, advantages: Sequence[AdvantageRecord]) -> None:
        """Records what training weighed every rollout of the group with. Replaces earlier records of the group.

        `advantages`: one per rollout, in order of index.
        """
        self._queue("DELETE FROM advantages WHERE group_id = ?", (group,))
        for index, (value, parts) in enumerate(advantages):
            known = value if math.isfinite(value) else None
            self._insert("advantages", (group, index, known, json.dumps(dict(parts))))

    def note_draw(self, draw: Draw) -> None:
        """Records how the curriculum came to a group's prompt. Call it before `admit`: a draw without a group is none."""
        self._insert("draws", (draw.group, draw.stage, draw.epoch, draw.most_tokens))

    def note_outcome(self, outcome: Outcome) -> None:
        """Records what a group says about its prompt. Call it before `consume` and `drop`."""
        self._insert("outcomes", (outcome.group, outcome.step, outcome.success, outcome.value))

    def note_stage(self, begun: Begun) -> None:
        """Records the stage of the curriculum that a step is in."""
        self._insert("stages", (begun.step, begun.stage, begun.value))

    def history(self, step: int) -> History:
        """Returns what the curriculum of a run that continues from `step` goes on with, as of the last commit."""
        with self._database_lock:
            return self._guarded(lambda: recovery.load_history(self._db, step))

    def drop(self, group: int, reason: str) -> None:
        """Records that the group will never be trained on."""
        self._insert("dropped", (group, reason))

    def mark_checkpoint(self, step: int) -> None:
        """Records that the checkpoint of this step is complete on disk."""
        self._queue("INSERT OR REPLACE INTO checkpoints VALUES (?)", (step,))

    def record_order(self, step: int, groups: Sequence[int]) -> None:
        """Records the groups that the step trains on, in its order.

        A rewind keeps this record, so that the step can be repeated.
        """
        self._insert("trained", (step, json.dumps(list(groups))))

    def orders(self, *, after: int) -> dict[int, list[int]]:
        """Returns the orders that `record_order` wrote for steps later than `after`, as of the last commit."""
        with self._database_lock:
            rows = self._guarded(
                lambda: self._db.execute("SELECT step, group_ids FROM trained WHERE step > ?", (after,)).fetchall()
            )
        return {step: json.loads(groups) for step, groups in rows}

    def commit(self) -> None:
        """Makes everything queued so far durable. Raises DataError; the rows then stay queued."""
        with self._database_lock:
            with self._queue_lock:
                tokens = self._undurable
                rows, self._rows = self._rows, []
                rows += [_delta_row(key, start, delta) for key, (start, delta) in self._deltas.items()]
                self._deltas = {}
            if not rows:
                return
            try:
                self._guarded(lambda: self._write(rows))
            except DataError:
                with self._queue_lock:
                    self._rows = rows + self._rows
                raise
            with self._queue_lock:
                self._undurable -= tokens

    def rewind(self, step: int) -> int:
        """Makes groups that were consumed after `step` ready again, and returns their number. Durable at return."""
        with self._database_lock:
            return self._guarded(lambda: recovery.rewind(self._db, step))

    def open_groups(self, kind: Kind = "training", *, admitted: int | None = None) -> list[GroupDraft]:
        """Commits, then returns the groups neither consumed nor dropped, finished or not, in order of id.

        `admitted`: only groups of this trainer step.
        """
        self.commit()
        where = f"kind = ? AND {recovery.OPEN} AND (? IS NULL OR admitted = ?)"
        with self._database_lock:
            return self._guarded(lambda: list(recovery.load_groups(self._db, where, (kind, admitted, admitted))))

    def lengths(self, first: int = 0, skip: Container[int] = ()) -> list[GroupLengths]:
        """Returns the lengths of training groups with ids from `first` on, except `skip`, as of the last commit."""
        with self._database_lock:
            return self._guarded(lambda: list(recovery.load_lengths(self._db, first, skip)))

    def next_id(self, kind: Kind) -> int:
        """Returns the first unused group id of this kind, as of the last commit."""
        with self._database_lock:
            smallest, largest = self._guarded(
                lambda: self._db.execute("SELECT min(id), max(id) FROM groups WHERE kind = ?", (kind,)).fetchone()
            )
        if kind == "training":
            return self._first if largest is None else largest + 1
        return -1 if smallest is None else smallest - 1

    def check_reaches(self, step: int) -> None:
        """Raises UnusableJournal unless the journal says what `step` trained on."""
        with self._database_lock:
            check_reaches(self._db, self.path, step)

    def snapshot(self, target: Path) -> None:
        """Copies the journal, as of the last commit, into a new file that JournalReader can read."""
        make_private(target)
        with self._database_lock, closing(sqlite3.connect(target)) as copy:
            self._guarded(lambda: self._db.backup(copy))
            copy.execute("PRAGMA journal_mode = DELETE")  # one plain file

    def close(self) -> None:
        """Commits the queued rows, folds the WAL into the file, and closes it."""
        self.commit()
        with self._database_lock:
            self._guarded(lambda: self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)"))
            if self._exclusive:  # a WAL left on a network file system could not be read by others
                self._guarded(lambda: self._db.execute("PRAGMA journal_mode = DELETE"))
            self._db.close()
        self._lock.release()

    def _queue(self, statement: str, row: tuple[Any, ...]) -> None:
        with self._queue_lock:
            self._rows.append((statement, row))

    def _insert(self, table: str, row: tuple[Any, ...]) -> None:
        self._queue(*_summed(table, row))

    def _open(self, exclusive: bool, check: bool) -> None:
        if exclusive:  # must come before WAL mode: then WAL needs no shared memory
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        if check:
            check_sound(self._db, self.path)
        check_schema(self._db, self.path, may_be_empty=True)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        update_schema(self._db)

    def _write(self, rows: list[tuple[str, tuple[Any, ...]]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for statement, run in groupby(rows, key=lambda row: row[0]):
                self._db.executemany(statement, [row for _, row in run])
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _guarded(self, action: Callable[[], Answer]) -> Answer:
        try:
            return action()
        except FILE_ERRORS as error:
            raise DataError(self.path, f"the journal's disk or file refuses: {one_line(error)}") from error


def take_up(
    path: Path, step: int, *, exclusive: bool = False, first: int = 0, new: bool = False, checked: bool = False
) -> Journal:
    """Opens the journal of a run that continues from `step`, or begins it.

    `first` is the id of the first training group of a journal without one. With `new`, a journal that cannot be used is
    kept under another name, and a new one begins. `checked`: this start has called `check_journal`, which reads the whole
    file. Raises UnusableJournal, and DataError as `Journal` does.
    """
    try:
        if not checked:
            check_journal(path, step)
        journal = Journal(path, exclusive=exclusive, first=first)
        try:
            journal.check_reaches(step)
        except BaseException:
            journal.close()
            raise
        return journal
    except UnusableJournal as error:
        if not new:
            raise
        log.warning("%s", error)
    keep_lost(path)
    log.warning("%s: a new journal begins; rollouts of the lost one that were not trained on are written again", path)
    journal = Journal(path, exclusive=exclusive, first=first)
    if step > 0:
        journal.record_order(step, [])  # the mark that it is the one of the checkpoint
        journal.commit()
    return journal


def _delta_row(key: tuple[int, int], start: int, delta: TokenDelta) -> tuple[str, tuple[Any, ...]]:
    return _summed(
        "deltas", (*key, start, pack_tokens(delta.tokens), pack_logprobs(delta.logprobs), str(delta.version))
    )


def _summed(table: str, row: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """Returns the statement that inserts or replaces a row, and its values with their sum."""
    conflict = "INSERT OR REPLACE" if table in _REPLACED else "INSERT"
    return f"{conflict} INTO {table} VALUES ({'?, ' * len(row)}?)", (*row, row_sum(row))
