"""The filters of the list of rollouts, as they stand in its address, and the SQL that they mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from megatron_lwz.ui.index import Index
from megatron_lwz.ui.search import fts_query

PAGE = 60
"""Rollouts of one page of the list."""

KINDS = {"training": "training", "evaluation": "held-out prompts", "all": "both"}
STATES = {
    "": "any",
    "trained": "trained on",
    "waiting": "waiting",
    "dropped": "group dropped",
    "excluded": "no weight in the loss",
}
ENDS = {
    "": "any",
    "stop": "complete",
    "length": "cut at the limit",
    "guard": "stopped by the guard",
    "abort": "aborted",
}
FORMS = {"": "any", "good": "well-formed", "faulty": "with a fault"}
LANGUAGES = {"": "any", "english": "English", "chinese": "Chinese"}
SORTS = {
    "newest": "newest first",
    "oldest": "oldest first",
    "tokens": "longest first",
    "shortest": "shortest first",
    "repetition": "most repetition",
    "alike": "siblings most alike",
    "unlikely": "lowest mean log-prob",
}
_ORDERS = {
    "newest": "step DESC, abs(r.group_id) DESC, r.rollout",
    "oldest": "step, abs(r.group_id), r.rollout",
    "tokens": "r.tokens DESC, r.key",
    "shortest": "r.tokens, r.key",
    "repetition": "r.repetition DESC, r.key",
    "alike": "likeness.value DESC, r.group_id, r.rollout",
    "unlikely": "r.logprob, r.key",
}
_BY_SCORE = {"best": "DESC", "worst": "ASC"}
_FROM = (
    "rollouts r LEFT JOIN journal.consumed c ON c.group_id = r.group_id LEFT JOIN journal.dropped d ON d.group_id = r.group_id "
    "LEFT JOIN likeness ON likeness.group_id = r.group_id"
)
COLUMNS = (
    "r.group_id, r.rollout, r.kind, r.prompt_id, r.head, r.language, r.lower, r.upper, coalesce(c.step, r.admitted) AS step, "
    "c.step IS NOT NULL AS trained, d.reason AS dropped, r.reason, r.stop, r.fault, r.tokens, r.words, r.repetition, "
    "r.first_version, r.last_version, likeness.value AS likeness"
)


@dataclass(frozen=True)
class Filters:
    """What the list shows. Values that cannot be read count as not given."""

    q: str = ""
    kind: str = "training"
    state: str = ""
    end: str = ""
    form: str = ""
    language: str = ""
    prompt: str = ""
    first: int | None = None
    """First training step: the one that used the group, else the one that it was admitted for."""
    last: int | None = None
    score: str = ""
    """A reward component, for `least`, `most` and the sorts best: and worst:."""
    least: float | None = None
    most: float | None = None
    flag: str = ""
    sort: str = "newest"
    at: int = 0
    """Number of rollouts before this page."""

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Filters:
        """Reads the query of an address."""
        found: dict[str, Any] = {}
        for field in fields(cls):
            text = query.get(field.name, "").strip()
            if not text:
                continue
            number = {"int": _whole, "int | None": _whole, "float | None": _number}.get(str(field.type))
            value = number(text) if number else text[:500]
            if value is not None:
                found[field.name] = value
        made = cls(**found)
        known = {"kind": KINDS, "state": STATES, "end": ENDS, "form": FORMS, "language": LANGUAGES}
        wrong = {name: cls.__dict__[name] for name, values in known.items() if getattr(made, name) not in values}
        sort = made.sort if made.sort in SORTS or made.sort in _BY_SCORE else "newest"
        return replace(made, **wrong, sort=sort, at=max(0, min(made.at, 10**9)))

    def address(self, **changes: Any) -> str:
        """Returns the query string of these filters with some changed; what is not given is left out."""
        made, plain = replace(self, **changes), Filters()
        pairs = [
            (f.name, getattr(made, f.name)) for f in fields(self) if getattr(made, f.name) != getattr(plain, f.name)
        ]
        return urlencode(pairs)

    def query(self, index: Index, flagged: Collection[tuple[int, int]]) -> tuple[str, list[Any]]:
        """Returns FROM and WHERE with their values. `flagged` are the rollouts with a flag."""
        where: list[str] = ["1"]
        values: list[Any] = []

        def add(condition: str, *given: Any) -> None:
            where.append(condition)
            values.extend(given)

        if self.kind != "all":
            add("r.kind = ?", self.kind)
        for column, given in (("language", self.language), ("prompt_id", self.prompt), ("reason", self.end)):
            if given:
                add(f"r.{column} = ?", given)
        if self.form:
            add("r.fault IS NULL" if self.form == "good" else "r.fault IS NOT NULL")
        self._add_state(index, add)
        if self.first is not None:
            add("coalesce(c.step, r.admitted) >= ?", self.first)
        if self.last is not None:
            add("coalesce(c.step, r.admitted) <= ?", self.last)
        for bound, sign in ((self.least, ">="), (self.most, "<=")):
            if bound is not None and self.score:
                add(f"({_SCORE}) {sign} ?", self.score, bound)
        if self.flag:
            pairs = ", ".join(f"({int(group)}, {int(rollout)})" for group, rollout in flagged) or "(NULL, NULL)"
            add(f"(r.group_id, r.rollout) IN (VALUES {pairs})")
        if text := fts_query(self.q):
            add("r.key IN (SELECT rowid FROM texts WHERE texts MATCH ?)", text)
        return f"FROM {_FROM} WHERE {' AND '.join(where)}", values

    def _add_state(self, index: Index, add: Any) -> None:
        if self.state == "trained":
            add("c.step IS NOT NULL")
        elif self.state == "waiting":
            add("c.step IS NULL AND d.reason IS NULL")
        elif self.state == "dropped":
            add("d.reason IS NOT NULL")
        elif self.state == "excluded":
            has = "excluded" in index.tables
            add("(r.group_id, r.rollout) IN (SELECT group_id, rollout FROM journal.excluded)" if has else "0")

    def order(self) -> tuple[str, list[Any]]:
        """Returns ORDER BY and its values."""
        if self.sort in _BY_SCORE:
            return (
                (f"({_SCORE}) {_BY_SCORE[self.sort]} NULLS LAST, r.key", [self.score]) if self.score else ("r.key", [])
            )
        return _ORDERS[self.sort], []


_SCORE = "SELECT value FROM journal.scores s WHERE s.group_id = r.group_id AND s.rollout = r.rollout AND s.component = ? AND s.valid"


def _whole(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdecimal() and len(text) < 16 else None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e15 else None
