"""One rollout or one group of the journal, with everything that the reader shows of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_lwz.data.text.grammar import ParsedResponse, parse_response, quoted_tags
from megatron_lwz.rollout.schema import prompt_from_json, score_from_row
from megatron_lwz.types import Alarm, ComponentScore, Prompt
from megatron_lwz.ui.index import Index


@dataclass(frozen=True)
class Member:
    """A finished rollout of a group."""

    index: int
    reason: str
    stop: str | None
    text: str
    tokens: int
    versions: tuple[int, int]
    """Steps of the first and the last weights that wrote it."""
    logprob: float | None
    """Mean log-prob of its tokens."""
    scores: Mapping[str, ComponentScore] = field(default_factory=dict)
    alarms: Sequence[Alarm] = ()
    excluded: str | None = None
    """Why it has no weight in the loss; None if it has, or was not trained on."""
    advantage: float | None = None
    """What training weighed each of its tokens with; None if the journal does not say."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Component → what it adds to the advantage."""


@dataclass(frozen=True)
class GroupView:
    """A prompt group with its finished rollouts."""

    id: int
    kind: str
    prompt: Prompt
    prompt_tokens: int
    """Number of tokens of the rendered prompt."""
    admitted: int
    size: int
    step: int | None
    """Training step that used it; None if none did."""
    dropped: str | None
    members: Mapping[int, Member]

    def parsed(self, member: Member) -> ParsedResponse:
        """Returns thinking and answer of a member."""
        return parse_response(member.text, self.prompt.template, stop=member.stop, quoted=quoted_tags(self.prompt.text))


def read_group(index: Index, group: int, *, only: int | None = None) -> GroupView | None:
    """Returns a group; `only`: with the text of this member alone. None if the journal has no such group.

    Raises DataError.
    """
    with index.reading() as db:
        columns = "g.kind, g.prompt, length(g.prompt_tokens) / 4, g.admitted, g.size, c.step, d.reason"
        joins = "LEFT JOIN journal.consumed c ON c.group_id = g.id LEFT JOIN journal.dropped d ON d.group_id = g.id"
        found = db.execute(f"SELECT {columns} FROM journal.groups g {joins} WHERE g.id = ?", (group,)).fetchone()
        if found is None:
            return None
        try:
            kind, prompt, length, admitted, size, step, dropped = found
            members = _members(db, index, group, only)
            return GroupView(group, kind, prompt_from_json(prompt), length, admitted, size, step, dropped, members)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise sqlite3.DataError(f"group {group} is not as it was written ({error!r:.200})") from error


def _members(db: sqlite3.Connection, index: Index, group: int, only: int | None) -> dict[int, Member]:
    scores = _scores(db, group)
    alarms = _alarms(db, group) if "alarms" in index.tables else {}
    query = "SELECT rollout, reason FROM journal.excluded WHERE group_id = ?"
    excluded = dict(db.execute(query, (group,))) if "excluded" in index.tables else {}
    query = "SELECT rollout, value, parts FROM journal.advantages WHERE group_id = ?"
    weighed = (
        {r: (v, json.loads(parts)) for r, v, parts in db.execute(query, (group,))}
        if "advantages" in index.tables
        else {}
    )
    text = "f.text" if only is None else f"CASE f.rollout WHEN {int(only)} THEN f.text ELSE '' END"
    query = (
        f"SELECT f.rollout, f.reason, f.stop, {text}, r.tokens, r.first_version, r.last_version, r.logprob "
        "FROM journal.finished f LEFT JOIN rollouts r ON r.group_id = f.group_id AND r.rollout = f.rollout WHERE f.group_id = ?"
    )
    found = {}
    for rollout, reason, stop, written, tokens, first, last, logprob in db.execute(query, (group,)).fetchall():
        facts = (rollout, reason, stop, written, tokens or 0, (first or 0, last or 0), logprob)
        more = (excluded.get(rollout), *weighed.get(rollout, (None, {})))
        found[rollout] = Member(*facts, scores.get(rollout, {}), alarms.get(rollout, ()), *more)
    return found


def _scores(db: sqlite3.Connection, group: int) -> dict[int, dict[str, ComponentScore]]:
    found: dict[int, dict[str, ComponentScore]] = {}
    query = "SELECT rollout, component, value, valid, details, version FROM journal.scores WHERE group_id = ?"
    for rollout, name, *row in db.execute(query, (group,)):
        found.setdefault(rollout, {})[name] = score_from_row(*row)
    return found


def _alarms(db: sqlite3.Connection, group: int) -> dict[int, tuple[Alarm, ...]]:
    found: dict[int, tuple[Alarm, ...]] = {}
    query = "SELECT rollout, position, rule, stopped, scores FROM journal.alarms WHERE group_id = ? ORDER BY rollout, position"
    for rollout, position, rule, stopped, scores in db.execute(query, (group,)):
        found[rollout] = (*found.get(rollout, ()), Alarm(rule, position, bool(stopped), json.loads(scores)))
    return found


def neighbours(index: Index, prompt_id: str, kind: str) -> list[dict[str, Any]]:
    """Returns the groups of one prompt in the order of their steps: group_id, step, rollouts, mean words."""
    query = (
        "SELECT r.group_id, coalesce(c.step, r.admitted) AS step, count(*), avg(r.words), min(r.rollout) FROM rollouts r "
        "LEFT JOIN journal.consumed c ON c.group_id = r.group_id WHERE r.prompt_id = ? AND r.kind = ? "
        "GROUP BY r.group_id ORDER BY step, abs(r.group_id) LIMIT 500"
    )
    names = ("group", "step", "rollouts", "words", "first")
    return [dict(zip(names, row, strict=True)) for row in index.rows(query, prompt_id, kind)]
