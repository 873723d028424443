"""What the journal says happened: groups read back, and the rewind to a checkpoint."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.schema import prompt_from_json, unpack_logprobs, unpack_tokens
from megatron_lwz.types import ComponentScore, FinishReason, TokenDelta, WeightVersion

OPEN = "id NOT IN (SELECT group_id FROM consumed) AND id NOT IN (SELECT group_id FROM dropped)"


def rewind(db: sqlite3.Connection, step: int) -> int:
    """Forgets what was trained after `step`: groups consumed later return to ready. Their number is returned.

    Rollouts and scores stay, and so does the record of which groups a step trained on: the redone steps repeat it.
    """
    returned = db.execute("DELETE FROM consumed WHERE step > ?", (step,)).rowcount
    db.execute("DELETE FROM checkpoints WHERE step > ?", (step,))
    return returned


def load_groups(
    db: sqlite3.Connection, where: str, parameters: tuple[object, ...] = (), *, tokens: bool = True
) -> Iterator[GroupDraft]:
    """Groups that match an SQL condition over the table `groups`, in order of id, one at a time in memory.

    Without `tokens` the responses are text only, which spares most of the reading.
    """
    columns = "id, kind, prompt, prompt_tokens, admitted, size"
    for row in db.execute(f"SELECT {columns} FROM groups WHERE {where} ORDER BY id", parameters).fetchall():
        group, kind, prompt, prompt_tokens, admitted, size = row
        yield GroupDraft(
            id=group,
            kind=kind,
            prompt=prompt_from_json(prompt),
            prompt_tokens=tuple(unpack_tokens(prompt_tokens)),
            admitted=admitted,
            drafts=_drafts(db, group, size, tokens),
            scores=_scores(db, group, size),
        )


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
    return drafts


def _scores(db: sqlite3.Connection, group: int, size: int) -> list[dict[str, ComponentScore]]:
    scores: list[dict[str, ComponentScore]] = [{} for _ in range(size)]
    query = "SELECT rollout, component, value, valid, details, version FROM scores WHERE group_id = ?"
    for index, component, value, valid, details, version in db.execute(query, (group,)):
        scores[index][component] = ComponentScore(
            float("nan") if value is None else value, bool(valid), json.loads(details), version
        )
    return scores if any(scores) else []
