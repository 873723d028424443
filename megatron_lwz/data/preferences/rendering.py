"""The text that a reward model reads: a request and a reply, followed by an end token that is not the padding token.

transformers reads the score at the last token that is not padding, so a text must not end in the padding token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from megatron_lwz.data.markup import Markup, join
from megatron_lwz.data.replies import thinks
from megatron_lwz.data.templates import render_turn
from megatron_lwz.data.text.grammar import OUTSIDE, parse_response
from megatron_lwz.data.tokenizer import Tokenizer, read_pad_id
from megatron_lwz.errors import DataError
from megatron_lwz.reading import read_json
from megatron_lwz.writing import write_text

FILE = "reward_model.json"
"""File beside the exported weights that holds the rendering of texts for them."""

_TURN_END = "<|im_end|>"
_CHAT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
"""System message that Qwen2.5's own chat template uses when none is given."""


@dataclass(frozen=True)
class Rendering:
    """How a request and its reply are rendered as one text.

    `template`: the policy's markers or Qwen's chat markup. `end` is appended to a text with markers; it may be empty.
    """

    template: Literal["markers", "chat"] = "markers"
    thinking: bool = False
    end: str = _TURN_END

    def __call__(self, prompt: str, reply: Reply) -> Markup:
        """Returns the text of a request and its reply. The think segment is left out unless `thinking` is set."""
        said = reply.answer.strip()
        if self.thinking and reply.thinking:
            said = f"<think>{reply.thinking}</think> <answer>{said}</answer>"
        if self.template == "markers":
            return join(render_turn(prompt), " ", said, Markup(self.end))
        turns = (("system", _CHAT_SYSTEM), ("user", prompt), ("assistant", said))
        end = Markup(f"{_TURN_END}\n")
        return join(*(part for role, text in turns for part in (Markup(f"<|im_start|>{role}\n"), text, end)))


@dataclass(frozen=True)
class Reply:
    """An answer, and the thinking before it if there is any."""

    answer: str
    thinking: str = ""


def split_reply(text: str) -> Reply:
    """Splits a reply at its tags. A text without an answer tag is all answer, except a think segment before it.

    As in a rollout, an answer that is not closed ends with the text. Without its closing tag, an answer tag counts only
    where the answer may begin: a text may name it.
    """
    if _is_tagged(text):
        parsed = parse_response(text)
        return Reply(parsed.answer or "", parsed.think or "")
    thinking, closed, rest = text.partition("</think>")
    return Reply(rest, thinking.replace("<think>", "", 1)) if closed else Reply(text)


def says_more(text: str) -> bool:
    """Returns whether text stands outside the tags of a reply, where `split_reply` would lose it."""
    return _is_tagged(text) and parse_response(text, "think" if thinks(text) else "direct").fault == OUTSIDE


def _is_tagged(text: str) -> bool:
    _, closed, rest = text.partition("</think>")
    rest = rest if closed else text
    return "<answer>" in rest and ("</answer>" in rest or rest.lstrip().startswith("<answer>"))


def rendering_for(folder: Path, template: Literal["markers", "chat"], *, thinking: bool) -> Rendering:
    """Returns the rendering of a new reward model for the tokenizer in `folder`."""
    tokenizer = Tokenizer(folder)
    known = tokenizer.encode(Markup(_TURN_END))
    if len(known) == 1 and tokenizer.decode(known, skip_special=False) == _TURN_END:  # not the unknown token
        return Rendering(template, thinking, _TURN_END)
    free = sorted(tokenizer.eos_ids - {read_pad_id(folder)})
    return Rendering(template, thinking, tokenizer.decode(free[:1], skip_special=False))


def save_rendering(folder: Path, rendering: Rendering) -> None:
    """Writes `reward_model.json`."""
    write_text(folder / FILE, json.dumps(asdict(rendering), indent=2) + "\n")


def load_rendering(folder: Path) -> Rendering | None:
    """Reads the file that `save_rendering` wrote. Returns None if the folder has none. Raises DataError."""
    path = folder / FILE
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        return parse_rendering(found)
    except ValueError as error:
        raise DataError(path, f"not a rendering ({error})") from error


def parse_rendering(found: object) -> Rendering:
    """Parses and checks a decoded `reward_model.json`. Raises ValueError."""
    if not isinstance(found, Mapping) or set(found) != {"template", "thinking", "end"}:
        raise ValueError('needs {"template", "thinking", "end"}')
    template, thinking, end = found["template"], found["thinking"], found["end"]
    if template not in ("markers", "chat") or not isinstance(thinking, bool) or not isinstance(end, str):
        raise ValueError(
            f"template {template!r}, thinking {thinking!r}, end {end!r}: markers or chat, true or false, text"
        )
    return Rendering(template, thinking, end)
