"""The grammar of a response: one think segment, then one answer segment, with white space around them.

    response = space "<think>" text "</think>" space "<answer>" text "</answer>" space      (template think)
    response = space "<answer>" text "</answer>" space                                      (template direct)

`text` is not blank and holds none of the four tags, except those that the prompt itself holds: a text about tags must
be able to name them. The closing tag of a segment always closes it. Everything else is a fault. The parser records the
name of the first fault and continues, so that the answer of a malformed response can still be measured.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from megatron_lwz.types import Prompt, Rollout

Template = Literal["think", "direct"]
Segment = Literal["before", "think", "between", "answer", "after"]

ANSWER_END = "</answer>"
TAGS = ("<think>", "</think>", "<answer>", ANSWER_END)
_TAG = re.compile("|".join(TAGS))
_TAG_STARTS = frozenset(tag[:size] for tag in TAGS for size in range(1, len(tag)))
_LONGEST_START = max(map(len, _TAG_STARTS))
_EXPECTED: dict[Segment, str] = {"before": "<think>", "think": "</think>", "between": "<answer>", "answer": ANSWER_END}
"""The only tag that may come next in each segment; none may follow the answer."""

OUTSIDE = "text outside think and answer"


@dataclass(frozen=True)
class ParsedResponse:
    """The segments of one response. `fault` names its first fault, None when it is well formed.

    `answer` is None when no answer was opened. A truncated answer is kept as far as it goes.
    """

    think: str | None
    answer: str | None
    answer_closed: bool
    fault: str | None

    @property
    def valid(self) -> bool:
        """Whether the response follows the grammar."""
        return self.fault is None


class ResponseParser:
    """Parses a response while it is generated. The results do not depend on how the text is cut into pieces."""

    def __init__(self, template: Template = "think", quoted: Collection[str] = ()) -> None:
        """Takes the tags `quoted` as plain text inside think and answer, because the prompt names them."""
        self.segment: Segment = "before" if template == "think" else "between"
        """Segment in which the text read so far ends. A tag counts only when it is complete."""
        self.fault: str | None = None
        """First fault of the text so far, whatever text follows; None if there is none yet."""
        self._template = template
        self._quoted = frozenset(quoted)
        self._pieces: dict[Segment, list[str]] = {}
        self._written: set[Segment] = set()  # segments that are not blank
        self._held = ""

    @property
    def hopeless(self) -> bool:
        """Whether no further text can make the response valid. This is exact, so a rollout may be stopped on it."""
        if self.fault is not None:
            return True
        inside = self.segment in ("think", "answer")
        return bool(self._held) and not inside and not _EXPECTED.get(self.segment, "").startswith(self._held)

    def feed(self, text: str) -> None:
        """Parses the next piece of text."""
        text = self._held + text
        position = 0
        for tag in _TAG.finditer(text):
            self._take_text(text[position : tag.start()])
            self._take_tag(tag.group())
            position = tag.end()
        rest = text[position:]
        # The end of the piece may cut a tag: hold back text that could still become a tag.
        held = next((n for n in range(min(_LONGEST_START, len(rest)), 0, -1) if rest[-n:] in _TAG_STARTS), 0)
        self._take_text(rest[: len(rest) - held])
        self._held = rest[len(rest) - held :]

    def verdict(self, *, stop: str | None = None) -> str | None:
        """Returns the fault that the response would have if it ended here, None if it would be valid.

        More text may be fed afterwards. `stop` is the stop string that ends the response, as in `finish`.
        """
        inside = self.segment in ("think", "answer")
        if self.fault is not None:
            return self.fault
        if self._held and not inside:
            return OUTSIDE
        if self.segment in ("before", "between"):
            return "no answer"
        if self.segment == "after":
            return None
        if self.segment == "think" or stop != ANSWER_END:
            return f"{self.segment} not closed"
        return None if self._held or "answer" in self._written else "no answer"

    def finish(self, *, stop: str | None = None) -> ParsedResponse:
        """Ends the text and returns its segments. `stop` is the stop string; `</answer>` closes an answer left open."""
        fault = self.verdict(stop=stop)
        self._take_text(self._held)
        self._held = ""
        if self.segment == "answer" and stop == ANSWER_END:
            self._take_tag(ANSWER_END)
        self.fault = fault
        closed = self.segment == "after"
        return ParsedResponse(self._text("think"), self._text("answer"), answer_closed=closed, fault=fault)

    def _take_text(self, text: str) -> None:
        if self.segment in ("think", "answer"):
            self._pieces[self.segment].append(text)
        if text and not text.isspace():
            self._written.add(self.segment)
            if self.segment not in ("think", "answer"):
                self._blame(OUTSIDE)

    def _take_tag(self, tag: str) -> None:
        expected = _EXPECTED.get(self.segment)
        if tag != expected:
            if tag in self._quoted and self.segment in ("think", "answer"):
                self._pieces[self.segment].append(tag)
                self._written.add(self.segment)
                return
            self._blame(f"unexpected {tag}")
        elif self.segment in ("think", "answer") and self.segment not in self._written:
            self._blame("no thinking" if self.segment == "think" else "no answer")
        if tag == "<think>" and self.segment == "before":
            self._open("think")
        elif tag == "</think>" and self.segment in ("before", "think"):
            self.segment = "between"
        elif tag == "<answer>" and self.segment in ("before", "think", "between"):
            self._open("answer")
        elif tag == ANSWER_END and self.segment == "answer":
            self.segment = "after"
        elif self.segment in ("think", "answer"):
            self._pieces[self.segment].append(tag)

    def _open(self, segment: Segment) -> None:
        self.segment = segment
        self._pieces[segment] = []

    def _text(self, segment: Segment) -> str | None:
        return "".join(self._pieces[segment]) if segment in self._pieces else None

    def _blame(self, fault: str) -> None:
        self.fault = self.fault or fault


def quoted_tags(prompt: str) -> frozenset[str]:
    """Returns the tags in a prompt. A response to it may name them."""
    return frozenset(_TAG.findall(prompt))


def parse_response(
    text: str, template: Template = "think", *, stop: str | None = None, quoted: Collection[str] = ()
) -> ParsedResponse:
    """Parses a whole response. `stop` names the stop string that ended it; `text` may or may not end with it."""
    if stop is not None and stop != ANSWER_END:
        text = text.removesuffix(stop)
    parser = ResponseParser(template, quoted)
    parser.feed(text)
    return parser.finish(stop=stop)


def parse_rollout(prompt: Prompt, rollout: Rollout) -> ParsedResponse:
    """Parses a rollout of `prompt`."""
    return parse_response(rollout.text, prompt.template, stop=rollout.stop, quoted=quoted_tags(prompt.text))


def parser_for(prompt: Prompt) -> ResponseParser:
    """Returns a parser for a rollout of `prompt` that is still being generated. It agrees with `parse_rollout`."""
    return ResponseParser(prompt.template, quoted_tags(prompt.text))
