"""Message lists as people publish them: turns of `role` + `content` (OpenAI, TRL) or `from` + `value` (ShareGPT).

The one place that understands such a list. Every text of a turn is kept: thinking beside a reply becomes
`<think>…</think>` before it. What has no place in a text (tool calls, images) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_lwz.errors import DataError
from megatron_lwz.reading import parse_json

Role = Literal["system", "user", "assistant"]

EXPECTED = 'a list of turns {"role": "user" or "assistant", "content": text}'
REASONING = (
    "reasoning_content", "reasoning", "thinking", "thought", "think", "cot", "complex_cot", "chain_of_thought",
    "reasoning_details",
)  # fmt: skip
"""Keys that hold the thinking beside a reply, in a turn or in a row."""

_NAMES: dict[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "ai", "bard", "bing", "claude", "gemini"),
}
_ROLES: dict[str, Role] = {name: role for role, names in _NAMES.items() for name in names}
_TOOL_ROLES = (
    "tool", "tools", "function", "observation", "ipython", "environment", "function_call", "function_response",
    "tool_call", "tool_calls", "tool_response", "tool_result",
)  # fmt: skip
_ROLE_KEYS = ("role", "from")
_TEXT_KEYS = ("content", "value", "text")
_EXCHANGES = (("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer"))
"""Keys of a question with its reply in one object (ms-swift, Capybara)."""
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_FOREIGN = ("tool_calls", "function_call", "tools", "functions", "train_detail", *MEDIA)
_SWITCHES = ("weight", "train", "training", "loss")
"""Keys that say whether a reply is trained: 0 or 1, true or false (OpenAI, axolotl, ms-swift)."""
_LABELS = {"on", "off", "true", "false", "yes", "no", "none", "null", "low", "medium", "high", "n/a"}
"""Values of a reasoning key that name a mode, and are no thinking."""
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_THINKING_PARTS = ("thinking", "reasoning")
_LIST_IN_TEXT = re.compile(r"\s*\[\s*\{\s*['\"](?:role|from|content|value)['\"]\s*:.*\}\s*\]\s*", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """One message. `trained` is False for a reply that its data set excludes from the loss."""

    role: Role
    text: str
    trained: bool = True


def parse_turns(value: Any, name: str) -> list[Turn]:
    """Parses a message list, a single message, or a text that holds a list as JSON.

    Raises ValueError that names the turn of `name` and what is expected.
    """
    if isinstance(value, str):
        value = _list_in_text(value, name)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"'{name}' must be {EXPECTED}")
    turns: list[Turn] = []
    for number, item in enumerate(value, start=1):
        where = f"turn {number} of '{name}'"
        if not isinstance(item, Mapping):
            raise ValueError(f"{where} must be an object, not {item!r:.40}: give {EXPECTED}")
        turns += _exchange(item, where) or [_turn(item, where)]
    return turns


def parse_said(value: Any, name: str, role: Role) -> list[Turn]:
    """Parses a column that holds a text, which becomes a turn of `role`, or a message list.

    Also reads OpenAI's `{"messages": [...], "tools": [...]}`. Raises ValueError.
    """
    if isinstance(value, str):
        return [Turn(role, value)] if _list_in_text(value, name) is None else parse_turns(value, name)
    if isinstance(value, Mapping) and "messages" in value:
        _refuse_foreign(value, f"'{name}'")
        return parse_turns(value["messages"], name)
    if not isinstance(value, (list, Mapping)):
        raise ValueError(f"'{name}' must be a text or {EXPECTED}, not {value!r:.40}")
    return parse_turns(value, name)


def first_request(value: Any, name: str) -> tuple[str | None, bool]:
    """Returns (first text of a user, whether a system turn stands before it) of a text or a message list.

    Later turns may be of any kind, since they are not read. Raises ValueError when the user's turn cannot be read.
    """
    if isinstance(value, str):
        found = _list_in_text(value, name)
        if found is None:
            return value, False
        value = found
    system = False
    for number, item in enumerate(value if isinstance(value, list) else (), start=1):
        where = f"turn {number} of '{name}'"
        if not isinstance(item, Mapping):
            continue
        if exchange := _exchange(item, where):
            return exchange[0].text, system
        role = _ROLES.get(_role_name(item))
        if role == "user":
            return _turn(item, where).text, system
        system = system or role == "system"
    return None, system


def reasoning_of(item: Mapping[str, Any], where: str) -> str:
    """Returns the thinking that a turn or row keeps beside its reply, "" if there is none. Raises ValueError."""
    found: dict[str, str] = {}
    for key in REASONING:
        value = item.get(key)
        if is_empty(value) or isinstance(value, (bool, int, float)):
            continue
        if not isinstance(value, str):
            raise ValueError(f"{where}: '{key}' must be a text, not {value!r:.40}")
        if value.strip().lower() not in _LABELS:
            found.setdefault(words(value), key)
    if len(found) > 1:
        raise ValueError(f"{where} has different thinking in {' and '.join(map(repr, found.values()))}: keep one")
    return next((item[key] for key in found.values()), "")


def add_thinking(text: str, thinking: str, where: str) -> str:
    """Returns `<think>thinking</think>` and the reply; the reply alone if it holds this thinking already.

    Raises ValueError when the reply begins with other thinking.
    """
    thinking = thinking.strip()
    if thinking.startswith("<think>"):
        thinking = thinking.removeprefix("<think>").removesuffix("</think>").strip()
    if not thinking:
        return text
    if text.lstrip().startswith("<think>") or "</think>" in text:
        if words(thinking) in words(text):
            return text
        raise ValueError(f"{where} has thinking in the reply and other thinking beside it: keep one")
    return f"<think>{thinking}</think> {text}"


def as_text(turns: list[Turn]) -> str:
    """Returns a conversation as one text: system texts, then the only turn, or all turns with their roles."""
    at = next((place for place, turn in enumerate(turns) if turn.role != "system"), len(turns))
    system, rest = [turn.text for turn in turns[:at]], turns[at:]
    said = [rest[0].text] if len(rest) == 1 else [f"{turn.role}: {turn.text}" for turn in rest]
    return "\n\n".join(system + said)


def words(text: str) -> str:
    """Returns the text with every run of white space as one space, for comparisons."""
    return " ".join(text.split())


def is_empty(value: Any) -> bool:
    """Returns whether a value holds nothing: null, NaN, blank, an empty list, or an object of such values."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(is_empty(item) for item in value.values())
    return value is None or value == [] or value != value  # only NaN differs from itself


def holds_foreign(value: Any) -> bool:
    """Returns whether a value of tools, images and the like holds something. Some data sets write "[]" as a text."""
    return not (is_empty(value) or value is False or (isinstance(value, str) and value.strip() in ("[]", "{}", "null")))


def _exchange(item: Mapping[str, Any], where: str) -> list[Turn]:
    """Returns question and reply of an object that holds both, else nothing."""
    if any(item.get(key) is not None for key in _ROLE_KEYS):
        return []
    for question, answer in _EXCHANGES:
        if isinstance(item.get(question), str) and isinstance(item.get(answer), str):
            reply = add_thinking(item[answer], reasoning_of(item, where), where)
            return [Turn("user", item[question]), Turn("assistant", reply, _is_trained(item, where))]
    return []


def _turn(item: Mapping[str, Any], where: str) -> Turn:
    named = _role_name(item)
    if named in _TOOL_ROLES:
        raise ValueError(f"{where} has the role {named!r}: tools are not supported, leave this conversation out")
    role = _ROLES.get(named)
    if role is None:
        keys = ", ".join(map(str, item)) or "none"
        raise ValueError(f"{where} has no known role (role = {named!r}, keys {keys}): give one of {', '.join(_ROLES)}")
    _refuse_foreign(item, where)
    text, thought = _content(item, where)
    beside = reasoning_of(item, where)
    if thought and beside and words(thought) != words(beside):
        raise ValueError(f"{where} has different thinking in 'content' and beside it: keep one")
    thinking = thought or beside
    if role == "assistant":
        return Turn(role, add_thinking(text, thinking, where), _is_trained(item, where))
    if thinking:
        raise ValueError(f"{where} holds thinking, but its role is {named!r}: only an assistant's turn may")
    return Turn(role, text)


def _role_name(item: Mapping[str, Any]) -> str:
    return str(next((item[key] for key in _ROLE_KEYS if item.get(key) is not None), None)).strip().lower()


def _content(item: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Returns (text, thinking) of a turn's content."""
    found = {key: item[key] for key in _TEXT_KEYS if item.get(key) is not None}
    if not found:
        key = next((key for key in _TEXT_KEYS if key in item), "content")
        raise ValueError(f"{where} has no text: '{key}' must be a text or a list of text parts, not null")
    first, *others = found
    if any(found[key] != found[first] for key in others):
        raise ValueError(f"{where} has different texts in {' and '.join(map(repr, found))}: keep one")
    content = found[first]
    if isinstance(content, str):
        return content, ""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        raise ValueError(f"{where}: '{first}' must be a text or a list of text parts, not {content!r:.40}")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        kind, text = _part(part, where)
        (thoughts if kind == "thinking" else texts).append(text)
    return _joined(texts), _joined(thoughts)


def _part(part: Any, where: str) -> tuple[Literal["text", "thinking"], str]:
    if isinstance(part, str):
        return "text", part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping):
        held = next((key for key in (*MEDIA, "image_url") if not is_empty(part.get(key))), None)
        text = part.get("text")
        if kind in _THINKING_PARTS:
            text = text if isinstance(text, str) else part.get(str(kind))
        if isinstance(text, str) and held is None and kind in (*_TEXT_PARTS, *_THINKING_PARTS):
            return "thinking" if kind in _THINKING_PARTS else "text", text
        kind = held or kind
    raise ValueError(f"{where} has a part that is no text ({kind or repr(part)[:40]}): only text can be read")


def _joined(parts: list[str]) -> str:
    """Joins parts as they are. Two parts without white space between them are separate lines."""
    text = ""
    for part in parts:
        apart = not text or not part or text[-1].isspace() or part[0].isspace()
        text += part if apart else f"\n{part}"
    return text


def _is_trained(item: Mapping[str, Any], where: str) -> bool:
    trained = True
    for key in _SWITCHES:
        value = item.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # equal to False and True
            raise ValueError(f"{where} has {key} = {value!r:.40}: give 0 or 1, or true or false")
        trained = trained and bool(value)
    return trained


def _refuse_foreign(item: Mapping[str, Any], where: str) -> None:
    for key in _FOREIGN:
        if holds_foreign(item.get(key)):
            raise ValueError(f"{where} has '{key}', which cannot be read: leave this conversation out")


def _list_in_text(text: str, name: str) -> list[Any] | None:
    """Decodes a message list that was stored as a JSON text; None for any other text. Raises ValueError."""
    if _LIST_IN_TEXT.fullmatch(text) is None:
        return None
    try:
        found = parse_json(text, f"'{name}'")
    except DataError as error:
        raise ValueError(f"'{name}' holds a message list as a text: {error.advice}; give {EXPECTED}") from error
    return found if isinstance(found, list) else None
