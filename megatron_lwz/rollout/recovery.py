"""Loads groups from the journal, and rewinds it to a checkpoint."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from megatron_lwz.rollout.curriculum import Begun, Draw, History, Outcome
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.length_book import ZERO_VARIANCE
from megatron_lwz.rollout.lengths import GroupLengths, RolloutLength
from megatron_lwz.rollout.schema import prompt_from_json, score_from_row, unpack_logprobs, unpack_tokens
from megatron_lwz.types import Alarm, ComponentScore, FinishReason, TokenDelta, WeightVersion

_MISWRITTEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError)
"""What reading the values of a damaged row raises."""
OPEN = "id NOT IN (SELECT group_id FROM consumed) AND id NOT IN (SELECT group_id FROM dropped)"


@dataclass(frozen=True)
class Recovery:
    """Contents of a recovered journal: groups that are ready again, complete and unfinished groups, and kept tokens."""

    returned: int
    complete: int
    unfinished: int
    kept_tokens: int


def rewind(db: sqlite3.Connection, step: int) -> int:
    """Makes groups that were consumed after `step` ready again, and returns their number.

    Rollouts and scores stay. The record of which groups a step trained on stays too, so that the repeated steps use it.
    """
    returned = db.execute("DELETE FROM consumed WHERE step > ?", (step,)).rowcount
    db.execute("DELETE FROM checkpoints WHERE step > ?", (step,))
    return returned


def load_groups(
    db: sqlite3.Connection, where: str, parameters: tuple[object, ...] = (), *, tokens: bool = True
) -> Iterator[GroupDraft]:
    """Yields the groups that match an SQL condition over the table `groups`, in order of id, one in memory at a time.

    Without `tokens` the responses are text only, which saves most of the reading. Raises sqlite3.Error, also for bytes
    that nobody wrote.
    """
    columns = "id, kind, prompt, prompt_tokens, admitted, size"
    for row in db.execute(f"SELECT {columns} FROM groups WHERE {where} ORDER BY id", parameters).fetchall():
        try:
            loaded = _load_group(db, row, tokens)
        except _MISWRITTEN as error:
            raise _damage(row[0], error) from error
        yield loaded


def _damage(group: int, error: Exception) -> sqlite3.DataError:
    return sqlite3.DataError(f"group {group} is not as it was written ({error!r:.200})")


def _load_group(db: sqlite3.Connection, row: tuple[Any, ...], tokens: bool) -> GroupDraft:
    group, kind, prompt, prompt_tokens, admitted, size = row
    return GroupDraft(
        id=group,
        kind=kind,
        prompt=prompt_from_json(prompt),
        prompt_tokens=tuple(unpack_tokens(prompt_tokens)),
        admitted=admitted,
        drafts=_drafts(db, group, size, tokens),
        scores=_scores(db, group, size),
    )


def load_lengths(db: sqlite3.Connection, first: int = 0, skip: Container[int] = ()) -> Iterator[GroupLengths]:
    """Yields the lengths of training groups with ids from `first` on that are not in `skip`, in order of id.

    It reads no text.
    """
    recorded = _has(db, "excluded")
    query = (
        "SELECT id, size, admitted, consumed.step, dropped.reason FROM groups "
        "LEFT JOIN consumed ON consumed.group_id = id LEFT JOIN dropped ON dropped.group_id = id "
        "WHERE kind = 'training' AND id >= ? ORDER BY id"
    )
    last = (
        "SELECT start + length(tokens) / 4 FROM deltas WHERE group_id = ? AND rollout = ? ORDER BY start DESC LIMIT 1"
    )
    for group, size, admitted, step, dropped in db.execute(query, (first,)).fetchall():
        if group in skip:
            continue
        ends = dict(db.execute("SELECT rollout, reason FROM finished WHERE group_id = ?", (group,)))
        query = "SELECT rollout, reason FROM excluded WHERE group_id = ?"
        excluded = dict(db.execute(query, (group,))) if recorded else {}
        written = {index: db.execute(last, (group, index)).fetchone() for index in range(size)}
        rollouts = [
            RolloutLength(tokens[0] if tokens else 0, ends.get(index), excluded.get(index))
            for index, tokens in written.items()
            if tokens or index in ends
        ]
        yield GroupLengths(group, admitted, step, dropped, tuple(rollouts))


def load_history(db: sqlite3.Connection, step: int) -> History:
    """Returns what a curriculum needs to go on after `step`.

    These are all draws, also of groups admitted later, and the outcomes of groups that steps up to `step` trained on. A
    later step is repeated and says again what it trained on, but groups that were replaced stay so.
    """
    query = (
        "SELECT group_id, prompt, admitted, stage, epoch, most_tokens "
        "FROM draws JOIN groups ON id = group_id ORDER BY group_id"
    )
    draws = []
    for group, prompt, *row in db.execute(query):
        try:
            draws.append(Draw(group, prompt_from_json(prompt).id, *row))
        except _MISWRITTEN as error:
            raise _damage(group, error) from error
    query = (
        "SELECT group_id, outcomes.step, success, value FROM outcomes JOIN draws USING (group_id) "
        "LEFT JOIN consumed USING (group_id) LEFT JOIN dropped USING (group_id) "
        "WHERE consumed.step <= ? OR dropped.reason = ? ORDER BY outcomes.step, group_id"
    )
    outcomes = [Outcome(*row) for row in db.execute(query, (step, ZERO_VARIANCE))]
    query = "SELECT step, stage, value FROM stages WHERE step <= ? ORDER BY step"
    return History(draws, outcomes, [Begun(*row) for row in db.execute(query, (step,))])


def _drafts(db: sqlite3.Connection, group: int, size: int, tokens: bool) -> list[Draft]:
    drafts = [Draft(group, index) for index in range(size)]
    query = "SELECT rollout, start, tokens, logprobs, version FROM deltas WHERE group_id = ? ORDER BY rollout, start"
    for index, start, ids, logprobs, version in db.execute(query, (group,)) if tokens else ():
        draft = drafts[index]
        if start != len(draft.tokens):
            raise ValueError(f"rollout {draft.id} has {len(draft.tokens)} tokens before position {start}")
        parsed = WeightVersion.parse(version)
        draft.extend(TokenDelta(tuple(unpack_tokens(ids)), tuple(unpack_logprobs(logprobs)), parsed))
    query = "SELECT rollout, reason, stop, text FROM finished WHERE group_id = ?"
    for index, reason, stop, text in db.execute(query, (group,)):
        drafts[index].reason, drafts[index].stop, drafts[index].text = FinishReason(reason), stop, text
    query = "SELECT rollout, position, rule, stopped, scores FROM alarms WHERE group_id = ? ORDER BY rollout, position, stopped"
    for index, position, rule, stopped, scores in db.execute(query, (group,)) if _has(db, "alarms") else ():
        drafts[index].alarms += (Alarm(rule, position, bool(stopped), json.loads(scores)),)
    return drafts


def _has(db: sqlite3.Connection, table: str) -> bool:
    """Returns whether the journal has this table, which older versions may lack."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is not None


def _scores(db: sqlite3.Connection, group: int, size: int) -> list[dict[str, ComponentScore]]:
    scores: list[dict[str, ComponentScore]] = [{} for _ in range(size)]
    query = "SELECT rollout, component, value, valid, details, version FROM scores WHERE group_id = ?"
    for index, component, *row in db.execute(query, (group,)):
        scores[index][component] = score_from_row(*row)
    return scores if any(scores) else []
