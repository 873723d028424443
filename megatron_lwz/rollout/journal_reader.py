"""Reads a run's journal, even from another process and while the run writes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from megatron_lwz.errors import DataError
from megatron_lwz.rollout import recovery
from megatron_lwz.rollout.drafts import GroupDraft, Kind
from megatron_lwz.rollout.lengths import GroupLengths
from megatron_lwz.rollout.schema import FILE_ERRORS, check_schema, one_line
from megatron_lwz.types import Group

Row = TypeVar("Row")


class JournalReader:
    """Reads a journal, even while its run writes.

    Each call sees a consistent view. Raises DataError if it is unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise DataError(path, "no journal there: name the folder of a GRPO run")
        try:
            self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=1)
            check_schema(self._db, path)
        except FILE_ERRORS as error:
            raise DataError(
                path, f"cannot read the journal ({one_line(error)}): restore the file from a copy"
            ) from error

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Gives one consistent view for all reads inside the block.

        The run may write meanwhile; its WAL grows until the end.
        """
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def groups(self, kind: Kind = "training", *, consumed_at: int | None = None) -> Iterator[Group]:
        """Yields the finished groups in order of id, one in memory at a time.

        `consumed_at`: only those of this training step. Evaluation groups that were dropped (because a repeated step
        had other weights) are left out.
        """
        done = "(SELECT count(*) FROM finished WHERE group_id = groups.id) = size"
        if kind == "evaluation":
            done += f" AND {recovery.OPEN}"
        if consumed_at is None:
            drafts = recovery.load_groups(self._db, f"kind = ? AND {done}", (kind,))
        else:
            step = "id IN (SELECT group_id FROM consumed WHERE step = ?)"
            drafts = recovery.load_groups(self._db, f"kind = ? AND {done} AND {step}", (kind, consumed_at))
        return self._read(self._frozen(draft) for draft in drafts)

    def scored(self) -> list[int]:
        """Returns the ids of the training groups that have scores and were not dropped, in order."""
        where = "kind = 'training' AND id IN (SELECT group_id FROM scores) AND id NOT IN (SELECT group_id FROM dropped)"
        return [group for (group,) in self._rows(f"SELECT id FROM groups WHERE {where} ORDER BY id")]

    def texts(self, ids: Sequence[int]) -> Iterator[Group]:
        """Yields groups by id, one in memory at a time, without tokens and log-probs, which are most of a journal."""
        for group in ids:
            for draft in self._read(recovery.load_groups(self._db, "id = ?", (group,), tokens=False)):
                yield self._frozen(draft)

    def lengths(self) -> Iterator[GroupLengths]:
        """Yields the lengths of all training groups, finished or not, and what happened to them."""
        return self._read(recovery.load_lengths(self._db))

    def prompt_lengths(self) -> dict[int, int]:
        """Returns a map from training group id to the tokens of its prompt."""
        return dict(self._rows("SELECT id, length(prompt_tokens) / 4 FROM groups WHERE kind = 'training'"))

    def consumed(self) -> dict[int, int]:
        """Returns a map from group id to the training step that used the group."""
        return dict(self._rows("SELECT group_id, step FROM consumed"))

    def checkpoints(self) -> list[int]:
        """Returns the steps of complete checkpoints, ascending."""
        return [step for (step,) in self._rows("SELECT step FROM checkpoints ORDER BY step")]

    def trained_order(self, step: int) -> list[int] | None:
        """Returns the order that `record_order` wrote for this step, None if there is none."""
        # not by name: in older journals the second column has another name, and the run may update the schema meanwhile
        rows = self._rows("SELECT * FROM trained WHERE step = ?", step)
        if not rows:
            return None
        try:
            found = json.loads(rows[0][1])
        except (TypeError, ValueError, LookupError):
            found = None
        if not isinstance(found, list):
            raise DataError(self._path, f"the journal is damaged: the groups of step {step} cannot be read")
        return found

    def _frozen(self, draft: GroupDraft) -> Group:
        try:
            return draft.freeze()
        except ValueError as error:  # scores, or the number of finished rollouts, say more than its rows hold
            raise DataError(self._path, f"the journal is damaged: {error}") from error

    def _rows(self, query: str, *values: object) -> list[Any]:
        return list(self._read(self._found(query, values)))

    def _found(self, query: str, values: tuple[object, ...]) -> Iterator[Any]:
        yield from self._db.execute(query, values)  # not before the first row is asked for: `_read` sees its errors too

    def _read(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yields the rows. Raises DataError for a file that is damaged."""
        try:
            yield from rows
        except FILE_ERRORS as error:
            raise DataError(self._path, f"the journal is damaged: {one_line(error)}") from error
