"""The shape of a response: one think segment, then one answer segment, and white space around them.

    response = space "<think>" text "</think>" space "<answer>" text "</answer>" space      (template think)
    response = space "<answer>" text "</answer>" space                                      (template direct)

`text` holds none of the four tags and is not blank. Everything else is a fault, which is remembered by name; the parser
then goes on, so that the answer of a malformed response can still be measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Template = Literal["think", "direct"]
Segment = Literal["before", "think", "between", "answer", "after"]

ANSWER_END = "</answer>"
_TAGS = ("<think>", "</think>", "<answer>", ANSWER_END)
_TAG = re.compile("|".join(_TAGS))
_TAG_STARTS = frozenset(tag[:size] for tag in _TAGS for size in range(1, len(tag)))
_LONGEST_START = max(map(len, _TAG_STARTS))


@dataclass(frozen=True)
class ParsedResponse:
    """The segments of one response. `fault` names the first thing wrong with it, None when it is well formed.

    `answer` is None when no answer was opened. An answer that was cut off is given as far as it goes.
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
    """Reads a response as it is written. Where the text is cut into pieces makes no difference."""

    def __init__(self, template: Template = "think") -> None:
        self.segment: Segment = "before" if template == "think" else "between"
        """Where the text read so far ends (a tag that is only half there counts when it is complete)."""
        self.fault: str | None = None
        self._template = template
        self._pieces: dict[Segment, list[str]] = {}
        self._held = ""

    def feed(self, text: str) -> None:
        """Takes the next piece of text."""
        text = self._held + text
        position = 0
        for tag in _TAG.finditer(text):
            self._take_text(text[position : tag.start()])
            self._take_tag(tag.group())
            position = tag.end()
        rest = text[position:]
        # A tag may be cut by the end of the piece: hold back what could still become one.
        held = next((n for n in range(min(_LONGEST_START, len(rest)), 0, -1) if rest[-n:] in _TAG_STARTS), 0)
        self._take_text(rest[: len(rest) - held])
        self._held = rest[len(rest) - held :]

    def finish(self, *, stop: str | None = None) -> ParsedResponse:
        """Ends the text. `stop` is the stop string that ended it; `</answer>` closes an answer left open."""
        self._take_text(self._held)
        self._held = ""
        if self.segment == "answer" and stop == ANSWER_END:
            self._take_tag(ANSWER_END)
        if self.segment in ("before", "between"):
            self._blame("no answer")
        elif self.segment != "after":
            self._blame(f"{self.segment} not closed")
        think, answer = self._text("think"), self._text("answer")
        if self._template == "think" and not (think or "").strip():
            self._blame("no thinking")
        if not (answer or "").strip():
            self._blame("no answer")
        return ParsedResponse(think, answer, answer_closed=self.segment == "after", fault=self.fault)

    def _take_text(self, text: str) -> None:
        if self.segment in ("think", "answer"):
            self._pieces[self.segment].append(text)
        elif text and not text.isspace():
            self._blame("text outside think and answer")

    def _take_tag(self, tag: str) -> None:
        expected = {"before": "<think>", "think": "</think>", "between": "<answer>", "answer": ANSWER_END}
        if tag != expected.get(self.segment):
            self._blame(f"unexpected {tag}")
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


def parse_response(text: str, template: Template = "think", *, stop: str | None = None) -> ParsedResponse:
    """Parses a whole response. `stop` names the stop string that ended it; `text` may or may not end with it."""
    if stop is not None and stop != ANSWER_END:
        text = text.removesuffix(stop)
    parser = ResponseParser(template)
    parser.feed(text)
    return parser.finish(stop=stop)
