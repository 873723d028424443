"""Instruction rows for supervised fine-tuning: rows in the usual formats → conversations → tokens with a loss mask.

A prompt is rendered as in reinforcement learning (`data/templates.py`). Prompt and reply are tokenised separately, so
that the reply begins where a rollout would. Only the reply's tokens and an end-of-text token are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megatron_lwz.data.markup import Markup, join
from megatron_lwz.data.replies import ENDS, clean, find_target_fault, thinks, wrap
from megatron_lwz.data.requests import REQUEST_COLUMNS, TALKS, find_lost, find_request, lost_message, lowered
from megatron_lwz.data.templates import Style, render, render_turn
from megatron_lwz.data.text.grammar import quoted_tags
from megatron_lwz.data.turns import Turn, add_thinking, is_empty, parse_said, reasoning_of, words
from megatron_lwz.reading import read_rows
from megatron_lwz.types import Prompt

_REPLIES = ("response", "completion", "output", "answer", "target", "targets", "content", "story")
_EXPECTED = "messages or conversations, prompt + completion, question + answer, or instruction (+ input) + output"
_NOT_TRAINED = "without a reply that is trained"


@dataclass(frozen=True)
class Conversation:
    """Alternating questions and replies, equally many of each. `id` names file and line.

    `trained` says of each reply whether its data set lets it carry the loss; () if all do. `unanswered`: the row had a
    last question without a reply, which trains nothing and is not here.
    """

    id: str
    questions: tuple[str, ...]
    replies: tuple[str, ...]
    system: str = ""
    template: Literal["think", "direct"] | None = None
    trained: tuple[bool, ...] = ()
    unanswered: bool = False

    @property
    def asked(self) -> tuple[str, ...]:
        """The questions, the first one with the system text before it."""
        first, *later = self.questions
        return (f"{self.system}\n\n{first}" if self.system else first, *later)


@dataclass(frozen=True)
class Rendering:
    """Settings for turning a conversation into tokens (`data.template`, `sft.*`).

    `ends` are the texts of the tokens that end a text.
    """

    style: Style = "paper"
    turns: Literal["all", "last"] = "all"
    wrap_answer: bool = True
    separator: str = " "
    ends: tuple[str, ...] = ENDS

    def trains(self, conversation: Conversation) -> list[bool]:
        """Returns which replies carry the loss."""
        trained = list(conversation.trained or [True] * len(conversation.replies))
        return trained if self.turns == "all" else [False] * (len(trained) - 1) + trained[-1:]


@dataclass(frozen=True)
class Example:
    """A conversation as tokens. `trained` marks the tokens that carry the loss as labels."""

    id: str
    tokens: tuple[int, ...]
    trained: tuple[bool, ...]


def read_conversations(path: str | Path) -> Iterator[Conversation]:
    """Yields the conversation in each row of a file. Raises DataError naming file and line."""
    for row in read_rows(path):
        try:
            yield parse_conversation(row.value, row.identity)
        except ValueError as error:
            raise row.error(error) from error


def parse_conversation(row: Mapping[str, Any], identity: str) -> Conversation:
    """Parses one decoded row. Raises ValueError that names the fault; for an unknown format it lists the row's keys."""
    row = lowered(row)
    template = row.get("template")
    if template not in (None, "think", "direct"):
        raise ValueError(f'\'template\' must be "think" or "direct", got {template!r}')
    turns, used = find_request(row)
    beside = _reply(row, used) if turns and turns[-1].role != "assistant" else []
    turns = turns + beside
    answered = any(turn.role == "assistant" for turn in (turns if used & set(TALKS) else turns[-1:]))
    if not answered:
        keys = ", ".join(row) or "(none)"
        raise ValueError(f"no {'reply' if turns else 'request'} found: the row has the keys {keys}; give {_EXPECTED}")
    turns = _with_thinking(turns, row, last=bool(beside))
    lost = find_lost(row, used, [turn.text for turn in turns], (*REQUEST_COLUMNS, *_REPLIES))
    if lost is not None:
        raise ValueError(lost_message(lost))
    return _alternating(turns, Conversation(identity, (), (), template=template))


def find_fault(conversation: Conversation, rendering: Rendering) -> str | None:
    """Returns why a conversation cannot be trained, else None: a reply or question is empty, or a reply is no target."""
    trained = rendering.trains(conversation)
    if not any(trained):
        return _NOT_TRAINED
    for question, reply, carries in zip(conversation.asked, conversation.replies, trained, strict=True):
        if not question.strip():
            return "with an empty question"
        fault = find_target_fault(
            clean(reply, rendering.ends),
            wrapped=rendering.wrap_answer,
            ends=rendering.ends,
            quoted=quoted_tags(question),
        )
        if fault is not None and carries:
            return fault
    return None


def tokenize(
    conversation: Conversation, encode: Callable[[str], list[int]], eos_ids: Sequence[int], rendering: Rendering
) -> Example:
    """Returns tokens and loss mask of a conversation. Each reply ends with one end-of-text token, `min(eos_ids)`."""
    tokens: list[int] = []
    trained: list[bool] = []
    replies = [clean(reply, rendering.ends) for reply in conversation.replies]
    template = conversation.template or ("think" if thinks(replies[-1]) else "direct")
    turns = zip(conversation.asked, replies, rendering.trains(conversation), strict=True)
    for turn, (question, reply, carries) in enumerate(turns):
        prompt = Prompt(conversation.id, question, template=template)
        given = encode(render(prompt, rendering.style) if turn == 0 else join(Markup("\n"), render_turn(question)))
        written = encode(rendering.separator + (wrap(reply) if rendering.wrap_answer else reply))
        written.append(min(eos_ids))
        tokens += given + written
        trained += [False] * len(given) + [carries] * len(written)
    return Example(conversation.id, tuple(tokens), tuple(trained))


def _reply(row: Mapping[str, Any], used: set[str]) -> list[Turn]:
    """Returns the turns of the row's reply column: the first that holds something, else the first."""
    present = [key for key in _REPLIES if row.get(key) is not None]
    key = next((key for key in present if not is_empty(row[key])), present[0] if present else None)
    if key is None:
        return []
    used.add(key)
    return parse_said(row[key], key, "assistant")


def _with_thinking(turns: list[Turn], row: Mapping[str, Any], *, last: bool) -> list[Turn]:
    """Puts the thinking that a row has beside its reply before the only reply, or before the `last` one."""
    thinking = reasoning_of(row, "the row")
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not thinking or any(words(thinking) in words(turn.text) for turn in turns):
        return turns
    if turns[-1].role != "assistant":
        raise ValueError("the row has thinking, but no reply to its last question")
    if len(places) != 1 and not last:
        raise ValueError(f"the row has thinking for one of {len(places)} replies: put it into the turn of its reply")
    said = turns[places[-1]]
    turns[places[-1]] = replace(said, text=add_thinking(said.text, thinking, "the row"))
    return turns


def _alternating(turns: list[Turn], empty: Conversation) -> Conversation:
    at = next((place for place, turn in enumerate(turns) if turn.role != "system"), len(turns))
    said = turns[at:]
    unanswered = said[-1].role == "user"
    said = said[:-1] if unanswered else said
    roles = [turn.role for turn in said]
    if not said or roles != ["user", "assistant"] * (len(said) // 2):
        raise ValueError(f"the turns must alternate user, assistant, …; they are {', '.join(roles) or 'none'}")
    trained = tuple(turn.trained for turn in said[1::2])
    return replace(
        empty,
        questions=tuple(turn.text for turn in said[0::2]),
        replies=tuple(turn.text for turn in said[1::2]),
        system="\n\n".join(turn.text for turn in turns[:at] if turn.text.strip()),
        trained=() if all(trained) else trained,
        unanswered=unanswered,
    )
