"""What the journal of a run that was killed must hold, whatever was killed and when."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from megatron_lwz.rollout.journal_reader import JournalReader


def durable_tokens(journal: Path) -> int:
    """Tokens on disk now, 0 if there is no journal yet; the run may be writing."""
    return _count(journal, "SELECT coalesce(sum(length(tokens) / 4), 0) FROM deltas")


def inside_rollouts(journal: Path) -> bool:
    """Whether a rollout that has tokens on disk has no end there."""
    ended = "(SELECT group_id, rollout FROM finished)"
    return _count(journal, f"SELECT count(*) FROM deltas WHERE (group_id, rollout) NOT IN {ended}") > 0


def _count(journal: Path, query: str) -> int:
    if not journal.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"{journal.resolve().as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            return int(db.execute(query).fetchone()[0])
    except sqlite3.Error:  # it is just being made
        return 0


def assert_every_token_once(journal: Path) -> None:
    """The stored deltas of each rollout follow each other without a gap or an overlap, log-probs as well."""
    with closing(sqlite3.connect(journal)) as db:
        rows = db.execute(
            "SELECT group_id, rollout, start, length(tokens) / 4, length(logprobs) / 4 FROM deltas ORDER BY 1, 2, 3"
        ).fetchall()
    ends: dict[tuple[int, int], int] = {}
    for group, rollout, start, tokens, logprobs in rows:
        assert start == ends.get((group, rollout), 0), (group, rollout, start)
        assert tokens == logprobs > 0
        ends[group, rollout] = start + tokens
    assert ends


def trained(journal: Path) -> list[tuple]:
    """(group, prompt, step, tokens, text) of every rollout that was trained on, and the log-probs behind them."""
    with JournalReader(journal) as reader:
        consumed = reader.consumed()
        return [
            (group.id, group.prompt, consumed[group.id], rollout.tokens, rollout.text, rollout.logprobs)
            for group in reader.groups()
            if group.id in consumed
            for rollout in group.rollouts
        ]


def writers(journal: Path) -> set[str]:
    """Every name of weights that a stored token carries."""
    with JournalReader(journal) as reader:
        return {
            str(segment.version)
            for group in reader.groups()
            for rollout in group.rollouts
            for segment in rollout.versions
        }
