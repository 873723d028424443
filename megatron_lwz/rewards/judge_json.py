"""Parses the JSON object in a judge's reply, and repairs the common faults of models. Nothing is ever executed.

It accepts: text and code fences around the object, thinking before it, single or curly quotes, quotes inside a string,
raw line breaks in a string, unquoted keys and words, trailing commas, True / False / None, and a truncated end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from megatron_lwz.decoding import refuse_deep_json

_LONGEST = 200_000
"""Maximum number of characters of a reply that are read, counted from its end."""
_TRIES = 32
"""Maximum number of opening braces that do not begin an object. Then the search ends, which limits the cost of a
hostile reply.
"""
_DEPTH = 16
_LONGEST_KEY = 200

_DECODER = json.JSONDecoder(strict=False)
_CLOSING = {'"': '"', "'": "'", "“": "”", "‘": "’"}
_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d+)?(?:[eE][+-]?\d{1,3})?(?=\s*(?:[,}\]]|$))")
_WORD = re.compile(r"[^\s\"'“‘{}\[\],:][^{}\[\],:\n]{0,200}")
_LITERALS = {"true": True, "false": False, "null": None, "none": None}
_SCORE = re.compile(
    r"(?P<score>\d{1,4}(?:\.\d{1,4})?) ?分?(?:\s*(?:/|out of|of)\s*(?P<scale>\d{1,4})(?:\.0)? ?分?)?", re.I
)
_KEY_ENDS = re.compile(r"\s*:")
_ITEM_ENDS = re.compile(r"\s*(?:\]|$|,\s*\S)")
# A quote ends a string only where the object can go on: before its end, or before a comma and the next key.
_VALUE_ENDS = re.compile(r"""\s*(?:[}\]]|$|,\s*(?:[}\]]|$|["'“‘][^"'“”‘’\n]{1,100}["'”’]\s*:|[A-Za-z_]\w*\s*:))""")


def read_object(reply: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """Returns the last object of `reply` that has all `keys`, None if there is none.

    It takes the last, because a judge may think aloud, or quote the judged text, before its verdict.
    """
    found = read_objects(reply, keys)
    return found[-1] if found else None


def read_objects(reply: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Returns all objects of `reply` that have all `keys`, in order, but not those inside another object."""
    text = reply.lstrip()
    if text.startswith("<think>"):
        text = text.partition("</think>")[2]  # a draft in the thinking is no verdict, even if truncated
    text = text[-_LONGEST:]
    found: list[dict[str, Any]] = []
    position = tries = 0
    while (position := text.find("{", position)) >= 0 and tries < _TRIES:
        value, end = _object_at(text, position)
        if value is not None and all(key in value for key in keys):
            found.append(value)
        if value is None:
            tries += 1
        position = max(end, position + 1)
    return found


def as_score(value: Any, low: int, high: int) -> float | None:
    """Returns a number in [low, high], None for anything else. A whole number comes as int, even if written as 7.0.

    Reads numbers between the whole ones (7.5), and texts that leave no doubt about the scale: "8", "7.5", "8分", "8/10"
    and "8 out of 10" where `high` is 10. A text with another scale ("4/5", "80/100", "80%") is refused.
    """
    if isinstance(value, str):
        written = _SCORE.fullmatch(value.strip())
        if written is None or int(written["scale"] or high) != high:
            return None
        value = float(written["score"])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        return None
    return int(value) if value == int(value) else float(value)


def _object_at(text: str, start: int) -> tuple[dict[str, Any] | None, int]:
    try:
        refuse_deep_json(text, start)
        value, end = _DECODER.raw_decode(text, start)
        return value, end  # it starts with a brace, so it is an object
    except ValueError:
        pass
    reader = _Lenient(text, start)
    try:
        return reader.read_object(0), reader.position
    except ValueError:
        return None, start


class _Lenient:
    """A recursive-descent parser that accepts text resembling an object. Raises ValueError where it cannot parse."""

    def __init__(self, text: str, position: int) -> None:
        self.position = position
        self._text = text

    def read_object(self, depth: int) -> dict[str, Any]:
        if depth > _DEPTH:
            raise ValueError("nested too deeply")
        self.position += 1
        result: dict[str, Any] = {}
        while not self._ends("}"):
            key = self._string(_KEY_ENDS) if self._peek() in _CLOSING else self._word()
            if self._peek() != ":":
                raise ValueError("no colon")
            self.position += 1
            if not self._peek():  # truncated after the colon
                break
            result[str(key)] = self._value(depth, _VALUE_ENDS)
            if self._peek() == ",":
                self.position += 1
            elif self._peek() not in ("}", ""):
                raise ValueError("no comma")
        return result

    def _list(self, depth: int) -> list[Any]:
        if depth > _DEPTH:
            raise ValueError("nested too deeply")
        self.position += 1
        result: list[Any] = []
        while not self._ends("]"):
            result.append(self._value(depth, _ITEM_ENDS))
            if self._peek() == ",":
                self.position += 1
            elif self._peek() not in ("]", ""):
                raise ValueError("no comma")
        return result

    def _value(self, depth: int, string_ends: re.Pattern[str]) -> Any:
        first = self._peek()
        if first == "{":
            return self.read_object(depth + 1)
        if first == "[":
            return self._list(depth + 1)
        if first in _CLOSING:
            return self._string(string_ends)
        if number := _NUMBER.match(self._text, self.position):
            self.position = number.end()
            return json.loads(re.sub(r"^(-?)0+(?=\d)", r"\1", number.group()))
        word = self._word()
        return _LITERALS.get(word.lower(), word)

    def _string(self, ends: re.Pattern[str]) -> str:
        """Parses a quoted string. A string without an end extends to the end of the text."""
        closing = _CLOSING[self._text[self.position]]
        self.position += 1
        start = place = self.position
        while (place := self._text.find(closing, place)) >= 0:
            if ends is _KEY_ENDS and place - start > _LONGEST_KEY:
                raise ValueError("no key is that long")
            if not self._escaped(start, place) and ends.match(self._text, place + 1):
                break
            place += 1
        end = place if place >= 0 else len(self._text)
        self.position = end + 1 if place >= 0 else end
        return _unescape(self._text[start:end])

    def _escaped(self, start: int, place: int) -> bool:
        """Returns whether an odd number of backslashes precedes `place`."""
        before = place
        while before > start and self._text[before - 1] == "\\":
            before -= 1
        return (place - before) % 2 == 1

    def _word(self) -> str:
        self._peek()
        word = _WORD.match(self._text, self.position)
        if word is None:
            raise ValueError("neither a string nor a word")
        self.position = word.end()
        return word.group().strip()

    def _peek(self) -> str:
        """Returns the next character that is not white space, "" at the end."""
        space = _SPACE.match(self._text, self.position)
        assert space is not None  # the pattern matches even an empty string
        self.position = space.end()
        return self._text[self.position : self.position + 1]

    def _ends(self, bracket: str) -> bool:
        """Returns whether the container ends here: by its bracket, or because the text is truncated."""
        following = self._peek()
        if following == bracket:
            self.position += 1
        return following in (bracket, "")


def _unescape(text: str) -> str:
    def escape(match: re.Match[str]) -> str:
        code = match.group()
        if code[1] == "u":
            return chr(int(code[2:], 16))
        return {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}.get(code[1], code[1])

    plain = re.sub(r"\\(?:u[0-9a-fA-F]{4}|[^u])", escape, text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
