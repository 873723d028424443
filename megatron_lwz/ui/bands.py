"""The bands of a rollout: values of its tokens and passages, with their places in the text as the reader shows it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np

from megatron_lwz.errors import DataError
from megatron_lwz.report.text import Shown, shown
from megatron_lwz.rollout import token_values
from megatron_lwz.types import WeightVersion
from megatron_lwz.ui.repetition import repeated
from megatron_lwz.ui.rollouts import GroupView, Member, read_group
from megatron_lwz.ui.run import Run

BANDS = {
    "none": "None",
    "logprob": "Log-prob of tokens",
    "entropy": "Entropy",
    "mismatch": "Trainer against engine",
    "advantage": "Advantage",
    "version": "Weight version",
    "repetition": "Repetition",
}
"""Band → its title."""
_OF_TOKENS = ("logprob", "version", "entropy", "mismatch")
_OF_TRAINER = ("entropy", "mismatch")
VALUES_MISSING = (
    "the tokens in the journal do not give this text with the tokenizer at hand: lwz ui --tokenizer names another"
)


def read(run: Run, group: int, rollout: int) -> bytes | None:
    """Returns the bands as JSON; None if there is no such finished rollout.

    ends: the end of each token, as differences. logprob: of each token, in hundredths. versions: (first token, weights).
    entropy, in hundredths, and mismatch, the trainer's log-prob less the engine's, in thousandths; null where unknown.
    advantage. twins: (start, end, start and end of the earlier copy). missing: band → why it has nothing to show.
    """
    index = run.index()
    view = read_group(index, group, only=rollout) if index is not None else None
    if index is None or view is None or rollout not in view.members:
        return None
    member = view.members[rollout]
    seen = shown(member.text)
    query = (
        "SELECT start, tokens, logprobs, version FROM journal.deltas WHERE group_id = ? AND rollout = ? ORDER BY start"
    )
    deltas = index.rows(query, group, rollout)
    missing = reasons(run, view, member)
    found: dict[str, Any] = {"twins": _twins(member.text, seen), "length": len(seen.text), "missing": missing}
    if member.advantage is not None:
        found["advantage"] = member.advantage
    ids = np.concatenate([np.frombuffer(blob, "<i4") for _, blob, _, _ in deltas]).tolist() if deltas else []
    ends = run.tokens.ends(ids, member.text)
    if ends is None:
        missing |= dict.fromkeys(_OF_TOKENS, run.tokens.missing or VALUES_MISSING)
        return _json(found)
    places = [seen.place(end) for end in ends]
    logprobs = np.concatenate([np.frombuffer(blob, "<f4") for _, _, blob, _ in deltas]) if deltas else np.zeros(0)
    found["ends"] = [after - before for before, after in pairwise([0, *places])]
    found["logprob"] = np.rint(np.clip(np.nan_to_num(logprobs, nan=-99.0), -99.0, 0.0) * 100).astype(int).tolist()
    found["versions"] = _versions([(start, version) for start, _, _, version in deltas])
    if "entropy" not in missing:
        values = _of_trainer(run, view, member, len(ids))
        found |= values if isinstance(values, dict) else {}
        missing |= dict.fromkeys(_OF_TRAINER, values) if isinstance(values, str) else {}
    return _json(found)


def reasons(run: Run, view: GroupView, member: Member) -> dict[str, str]:
    """Returns band → why the run has nothing to show in it, as far as that can be said without reading values."""
    untrained = ""
    if view.kind != "training":
        untrained = "a rollout of a held-out prompt is never trained on"
    elif view.step is None:
        untrained = "no step has trained on this rollout" + (" yet" if view.dropped is None else "")
    found = {}
    if untrained:
        found = dict.fromkeys((*_OF_TRAINER, "advantage"), untrained)
    elif member.excluded:
        left = f"left out of the loss ({member.excluded}), so the trainer computed no token of it"
        found = dict.fromkeys(_OF_TRAINER, left)
    elif view.step is not None and not run.paths.token_values_of(view.step).is_dir():
        interval = run.setting("logging.token_values", 0)
        asked = f"the run writes them every {interval} steps" if interval else "the run was not asked to write them"
        found = dict.fromkeys(_OF_TRAINER, f"step {view.step} left no values per token: {asked} (logging.token_values)")
    if member.advantage is None:
        found.setdefault("advantage", "the journal holds none: an earlier release wrote this step")
    return found


def _of_trainer(run: Run, view: GroupView, member: Member, tokens: int) -> dict[str, list[int | None]] | str:
    """Returns the values per token that the trainer left, or why there are none."""
    assert view.step is not None
    folder = run.paths.token_values_of(view.step)
    try:
        found = token_values.read(folder, view.id, member.index, prompt_tokens=view.prompt_tokens, tokens=tokens)
    except DataError as error:
        return str(error)
    if found is None:
        return f"the files of step {view.step} hold nothing of this rollout"
    return {"entropy": _whole(found.entropy, 100), "mismatch": _whole(found.difference, 1000)}


def _whole(values: token_values.Floats, times: int) -> list[int | None]:
    """Returns the values as whole parts of 1 / `times`, None where they are unknown."""
    return [None if value != value else round(min(max(value, -99.0), 99.0) * times) for value in values.tolist()]


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
    return json.dumps(found, separators=(",", ":"), allow_nan=False).encode()
