"""Instruction rows for supervised fine-tuning: JSONL in the usual formats → conversations → tokens with a loss mask.

A prompt is rendered as in reinforcement learning (`data/templates.py`). Prompt and reply are tokenised separately, so
that the reply begins where a rollout would. Only the reply's tokens and an end-of-text token are trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_lwz.data.templates import Style, render, render_turn
from megatron_lwz.errors import DataError
from megatron_lwz.types import Prompt

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_TURN_LISTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_REPLIES = ("response", "completion", "output")
_EXPECTED = "messages, conversations, prompt + response, or instruction (+ input) + output"


@dataclass(frozen=True)
class Conversation:
    """Alternating questions and replies, equally many of each. `id` names file and line."""

    id: str
    questions: tuple[str, ...]
    replies: tuple[str, ...]
    system: str = ""
    template: Literal["think", "direct"] | None = None


@dataclass(frozen=True)
class Rendering:
    """Settings for turning a conversation into tokens (`data.template`, `sft.*`)."""

    style: Style = "paper"
    turns: Literal["all", "last"] = "all"
    wrap_answer: bool = True
    separator: str = " "


@dataclass(frozen=True)
class Example:
    """A conversation as tokens. `trained` marks the tokens that carry the loss as labels."""

    id: str
    tokens: tuple[int, ...]
    trained: tuple[bool, ...]


def read_conversations(path: str | Path) -> Iterator[Conversation]:
    """Yields the conversation in each row of a JSONL file. Skips blank lines. Raises DataError naming file and line."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    try:
                        yield parse_conversation(json.loads(line), f"{path.name}:{number}")
                    except json.JSONDecodeError as error:
                        raise DataError(path, f"not valid JSON ({error.msg})", line=number) from error
                    except ValueError as error:
                        raise DataError(path, str(error), line=number) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read ({error})") from error


def parse_conversation(row: Any, identity: str) -> Conversation:
    """Parses one decoded row. Raises ValueError that names the fault; for an unknown format it lists the row's keys."""
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, not {type(row).__name__}")
    template = row.get("template")
    if template not in (None, "think", "direct"):
        raise ValueError(f'\'template\' must be "think" or "direct", got {template!r}')
    for key, (role, text) in _TURN_LISTS.items():
        if row.get(key) is not None:
            return _from_turns(row[key], key, role, text, Conversation(identity, (), (), _system(row), template))
    reply = next((key for key in _REPLIES if isinstance(row.get(key), str)), None)
    question = next((key for key in ("prompt", "instruction") if isinstance(row.get(key), str)), None)
    if question is None or reply is None:
        raise ValueError(
            f"unknown format: the row has the keys {', '.join(map(str, row)) or '(none)'}; give {_EXPECTED}"
        )
    context = row.get("input") if question == "instruction" else None
    if context is not None and not isinstance(context, str):
        raise ValueError(f"'input' must be a string, got {context!r}")
    asked = f"{row[question]}\n\n{context}" if context else row[question]
    return _checked(Conversation(identity, (asked,), (row[reply],), _system(row), template))


def tokenize(
    conversation: Conversation, encode: Callable[[str], list[int]], eos_ids: Sequence[int], rendering: Rendering
) -> Example:
    """Returns tokens and loss mask of a conversation. Each reply ends with one end-of-text token, `min(eos_ids)`."""
    tokens: list[int] = []
    trained: list[bool] = []
    last = len(conversation.replies) - 1
    template = conversation.template or _template_of(conversation.replies[last])
    for turn, (question, reply) in enumerate(zip(conversation.questions, conversation.replies, strict=True)):
        text = f"{conversation.system}\n\n{question}" if turn == 0 and conversation.system else question
        prompt = Prompt(conversation.id, text, template=template)
        given = encode(render(prompt, rendering.style) if turn == 0 else "\n" + render_turn(text))
        written = encode(rendering.separator + (_wrap(reply) if rendering.wrap_answer else reply))
        while written and written[-1] in eos_ids:  # a reply that already ends with it must not train it twice
            written.pop()
        written.append(min(eos_ids))
        tokens += given + written
        trained += [False] * len(given) + [rendering.turns == "all" or turn == last] * len(written)
    return Example(conversation.id, tuple(tokens), tuple(trained))


def _from_turns(turns: Any, key: str, role_key: str, text_key: str, empty: Conversation) -> Conversation:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"'{key}' must be a list of objects with '{role_key}' and '{text_key}'")
    said: list[tuple[str, str]] = []
    for turn in turns:
        role, text = _ROLES.get(str(turn.get(role_key))), turn.get(text_key)
        if role is None or not isinstance(text, str):
            raise ValueError(
                f"a turn of '{key}' needs '{role_key}' (one of {', '.join(_ROLES)}) and a string '{text_key}'; "
                f"it has {role_key} = {turn.get(role_key)!r} and the keys {', '.join(map(str, turn))}"
            )
        said.append((role, text))
    system = empty.system
    if said and said[0][0] == "system":
        system = said.pop(0)[1] or system
    if said and said[-1][0] == "user":
        said.pop()  # a question without a reply trains nothing
    roles = [role for role, _ in said]
    if not said or roles != ["user", "assistant"] * (len(said) // 2):
        raise ValueError(
            f"the turns of '{key}' must alternate user, assistant, …; they are {', '.join(roles) or 'none'}"
        )
    questions, replies = (tuple(text for role, text in said if role == wanted) for wanted in ("user", "assistant"))
    return _checked(Conversation(empty.id, questions, replies, system, empty.template))


def _checked(conversation: Conversation) -> Conversation:
    if not all(text.strip() for text in (*conversation.questions, *conversation.replies)):
        raise ValueError("a question or a reply is empty")
    return conversation


def _system(row: dict[str, Any]) -> str:
    value = row.get("system") or ""
    if not isinstance(value, str):
        raise ValueError(f"'system' must be a string, got {value!r}")
    return value


def _template_of(reply: str) -> Literal["think", "direct"]:
    return "think" if reply.lstrip().startswith("<think>") else "direct"


def _wrap(reply: str) -> str:
    """Returns the reply in the form that the templates ask for: a reply without tags is put inside the answer tags."""
    if "<answer>" in reply:
        return reply
    think, closed, piece = reply.partition("</think>") if reply.lstrip().startswith("<think>") else ("", "", reply)
    return f"{think}{closed}{' ' if closed else ''}<answer>{piece.strip() if closed else piece}</answer>"
