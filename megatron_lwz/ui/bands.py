"""The bands of a rollout: values of its tokens and passages, with their places in the text as the reader shows it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np

from megatron_lwz.types import WeightVersion
from megatron_lwz.ui.repetition import repeated
from megatron_lwz.ui.run import Run
from megatron_lwz.ui.text import Shown, shown

VALUES_MISSING = (
    "the tokens in the journal do not give this text with the tokenizer at hand: lwz ui --tokenizer names another"
)


def read(run: Run, group: int, rollout: int) -> bytes | None:
    """Returns the bands as JSON; None if there is no such finished rollout.

    ends: the end of each token, as differences. logprob: of each token, in hundredths. versions: (first token, weights).
    twins: (start, end, start and end of the earlier copy). missing: why there is nothing per token.
    """
    index = run.index()
    if index is None:
        return None
    rows = index.rows("SELECT text FROM journal.finished WHERE group_id = ? AND rollout = ?", group, rollout)
    if not rows:
        return None
    text = str(rows[0][0])
    seen = shown(text)
    query = (
        "SELECT start, tokens, logprobs, version FROM journal.deltas WHERE group_id = ? AND rollout = ? ORDER BY start"
    )
    deltas = index.rows(query, group, rollout)
    found: dict[str, Any] = {"twins": _twins(text, seen), "length": len(seen.text)}
    ids = np.concatenate([np.frombuffer(blob, "<i4") for _, blob, _, _ in deltas]).tolist() if deltas else []
    ends = run.tokens.ends(ids, text)
    if ends is None:
        found["missing"] = run.tokens.missing or VALUES_MISSING
        return _json(found)
    places = [seen.place(end) for end in ends]
    logprobs = np.concatenate([np.frombuffer(blob, "<f4") for _, _, blob, _ in deltas]) if deltas else np.zeros(0)
    found["ends"] = [after - before for before, after in pairwise([0, *places])]
    found["logprob"] = np.rint(np.clip(np.nan_to_num(logprobs, nan=-99.0), -99.0, 0.0) * 100).astype(int).tolist()
    found["versions"] = _versions([(start, version) for start, _, _, version in deltas])
    return _json(found)


def _twins(text: str, seen: Shown) -> list[list[int]]:
    return [
        [seen.place(place) for place in (twin.start, twin.end, twin.first, twin.first_end)] for twin in repeated(text)
    ]


def _versions(deltas: list[tuple[int, str]]) -> list[list[Any]]:
    found: list[list[Any]] = []
    last = ""
    for start, text in deltas:
        if text != last:
            version = WeightVersion.parse(text)
            name = f"step {version.step}" + (f", attempt {version.attempt}" if version.attempt else "")
            found.append([start, name])
            last = text
    return found


def _json(found: dict[str, Any]) -> bytes:
    return json.dumps(found, separators=(",", ":")).encode()
