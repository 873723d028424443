"""Reads preference pairs in the usual formats: JSONL or Parquet rows → PreferencePair.

Known formats: `chosen` + `rejected` as texts, message lists or transcripts (Anthropic HH), with the request beside or
inside them; `completions` with scores (UltraFeedback); two replies with a winner (LMSYS arena, PKU-SafeRLHF and
others).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.data.preferences.pairs import PreferencePair, text_of
from megatron_lwz.data.preparation.sources import read_objects
from megatron_lwz.errors import DataError

_PROMPTS = ("prompt", "instruction", "question", "query", "input", "context")
_CHOICES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("better", "worse"),
    ("winner_response", "loser_response"),
)
_TWO = (
    ("response_a", "response_b"),
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("answer_a", "answer_b"),
    ("conversation_a", "conversation_b"),
)
_WINNERS = ("winner", "better_response_id", "preference", "label", "choice")
_SCORES = ("overall_score", "score", "rating", "fine-grained_score")
_USERS = ("user", "human", "prompter")
_ASSISTANT = "\n\nAssistant:"
_HUMAN = "\n\nHuman:"


class _Unknown(ValueError):
    """A row in none of the known formats."""


def read_pairs(path: Path) -> Iterator[PreferencePair | None]:
    """Yields the pairs of one file, in order. Yields None for a row without a preference (tie, equal or empty replies).

    Raises DataError naming the file and row; for an unknown format it lists the columns present.
    """
    for number, row in enumerate(read_objects(path), start=1):
        if row is None:
            raise DataError(path, "a row must be a JSON object", line=number)
        try:
            yield parse_pair(row, f"{path.name}:{number}", source=path.name.split(".")[0])
        except _Unknown as error:
            raise DataError(path, f"{error}; present are: {', '.join(map(str, row)) or 'none'}", line=number) from error
        except ValueError as error:
            raise DataError(path, str(error), line=number) from error


def parse_pair(row: Mapping[str, Any], identity: str, *, source: str = "") -> PreferencePair | None:
    """Parses one decoded row; returns None for one without a preference. Raises ValueError that names the fault."""
    found = _replies(row)
    if found is None:
        return None
    prompt, chosen, rejected, margin = found
    if not prompt:
        prompt = next((row[key] for key in _PROMPTS if isinstance(row.get(key), str)), "")
        extra = row.get("input")
        if isinstance(row.get("instruction"), str) and isinstance(extra, str) and extra and prompt != extra:
            prompt = f"{prompt}\n\n{extra}"
    if not chosen.strip() or not rejected.strip() or chosen == rejected:
        return None
    return PreferencePair(
        id=str(row.get("id") or identity),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        kind=text_of(row, "kind", "human"),
        source=text_of(row, "source", source),
        document=text_of(row, "document", prompt or chosen),
        margin=margin,
    )


def _replies(row: Mapping[str, Any]) -> tuple[str, str, str, float | None] | None:
    """Returns (request or "", chosen, rejected, margin), or None when neither reply is better."""
    for better, worse in _CHOICES:
        if row.get(better) is not None and row.get(worse) is not None:
            prompt, chosen, rejected = _said(row[better], row[worse], better, worse)
            return prompt, chosen, rejected, _margin(row, better, worse)
    if isinstance(row.get("completions"), list):
        return _best_and_worst(row["completions"])
    for first, second in _TWO:
        if row.get(first) is not None and row.get(second) is not None:
            place = _winner(row)
            if place is None:
                return None
            better, worse = (first, second) if place == 0 else (second, first)
            return *_said(row[better], row[worse], better, worse), None
    known = ", ".join(f"{better} + {worse}" for better, worse in (*_CHOICES[:1], *_TWO[:2]))
    raise _Unknown(f"no known columns of a pair ({known} + winner, completions …)")


def _said(better: Any, worse: Any, better_name: str, worse_name: str) -> tuple[str, str, str]:
    if isinstance(better, str) and isinstance(worse, str):
        if _ASSISTANT in better and _ASSISTANT in worse:
            return _transcripts(better, worse)
        return "", better, worse
    if isinstance(better, list) and isinstance(worse, list):
        prompt, chosen = _messages(better, better_name)
        return prompt, chosen, _messages(worse, worse_name)[1]
    raise ValueError(f"'{better_name}' and '{worse_name}' must both be texts or both lists of messages")


def _transcripts(better: str, worse: str) -> tuple[str, str, str]:
    """Splits HH transcripts: the reply follows the last `Assistant:`, the conversation before it is the request."""
    head, _, chosen = better.rpartition(_ASSISTANT)
    rejected = worse.rpartition(_ASSISTANT)[2]
    asked = head.removeprefix(_HUMAN) if head.count(_HUMAN) == 1 else head
    return asked.strip(), chosen.strip(), rejected.strip()


def _messages(turns: Sequence[Any], name: str) -> tuple[str, str]:
    """Returns (conversation before the last reply, last reply) of a message list."""
    said: list[tuple[str, str]] = []
    for turn in turns:
        text = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        if not isinstance(text, str) or not isinstance(role, str):
            raise ValueError(f"a turn of '{name}' needs a role and a text, it is {turn!r}"[:200])
        said.append((role, text))
    if not said or said[-1][0] in _USERS:
        raise ValueError(f"'{name}' must end with the assistant's reply")
    before = [text for role, text in said[:-1]]
    if len(before) <= 1:
        return "".join(before), said[-1][1]
    return "\n\n".join(f"{role}: {text}" for role, text in said[:-1]), said[-1][1]


def _best_and_worst(completions: Sequence[Any]) -> tuple[str, str, str, float | None] | None:
    rated = []
    for completion in completions:
        if not isinstance(completion, Mapping):
            raise ValueError("'completions' must be a list of objects with a response and a score")
        text = completion.get("response", completion.get("text"))
        score = next((number for key in _SCORES if (number := _number(completion.get(key))) is not None), None)
        if isinstance(text, str) and score is not None:
            rated.append((score, text))
    if not rated:
        raise ValueError(f"no completion has a response and one of {', '.join(_SCORES)}")
    worst, best = min(rated), max(rated, key=lambda item: item[0])
    return None if best[0] == worst[0] else ("", best[1], worst[1], best[0] - worst[0])


def _winner(row: Mapping[str, Any]) -> int | None:
    """Returns the index of the better reply, 0 or 1; None for a tie. Raises ValueError for any other value."""
    name = next((key for key in _WINNERS if row.get(key) is not None), None)
    if name is None:
        raise _Unknown(f"two replies, but no column says which is better ({', '.join(_WINNERS)})")
    value = row[name]
    text = str(value).lower()
    if "tie" in text or text in ("both", "neither", "equal"):
        return None
    places = {"a": 0, "model_a": 0, "response_a": 0, "0": 0, "b": 1, "model_b": 1, "response_b": 1}
    if name != "better_response_id" and {"response_1", "response_2"} <= row.keys():
        places |= {"1": 0, "2": 1, "response_1": 0, "response_2": 1}
    else:
        places |= {"1": 1, "response_0": 0, "response_1": 1}
    if text not in places:
        raise ValueError(f"'{name}' = {value!r} names neither reply")
    return places[text]


def _margin(row: Mapping[str, Any], better: str, worse: str) -> float | None:
    given = _number(row.get("margin"))
    if given is not None:
        return given
    scores = [_number(row.get(key)) for key in (f"score_{better}", f"score_{worse}")]
    if scores[0] is None or scores[1] is None:
        scores = [_number(row.get(key)) for key in (f"{better}_score", f"{worse}_score")]
    return None if scores[0] is None or scores[1] is None else max(0.0, scores[0] - scores[1])


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
