"""The length of a text, counted as in LongBench-Write: CJK characters plus alphabetic words."""

from __future__ import annotations

import re
from typing import Literal

Unit = Literal["words", "characters"]

_CJK = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"\b[a-zA-Z]+\b")
_RUN = re.compile(r"\w+")
_LETTERS = re.compile(r"[a-zA-Z]+")


def count_units(text: str, unit: Unit = "words") -> int:
    """Returns the length of `text`.

    words: characters U+4E00–U+9FFF plus matches of `\\b[a-zA-Z]+\\b` (so "don't" is 2 and "x1" is 0).
    characters: every character that is not white space.
    """
    if unit == "characters":
        return sum(map(len, text.split()))
    return len(_CJK.findall(text)) + len(_WORD.findall(text))


class UnitCounter:
    """Computes `count_units` of a text that arrives in pieces. The count does not depend on where the text was cut."""

    def __init__(self, unit: Unit = "words") -> None:
        self._unit = unit
        self._closed = 0
        # State of the run of \w characters at the end of the text so far. The run is a word if it has only the letters
        # a-z and A-Z, because \b matches only at the ends of such runs.
        self._run_open = False
        self._run_letters = False

    @property
    def count(self) -> int:
        """Number of units in the text fed so far."""
        return self._closed + (self._run_open and self._run_letters)

    def feed(self, text: str) -> int:
        """Adds the next piece and returns the count."""
        if self._unit == "characters":
            self._closed += count_units(text, "characters")
            return self._closed
        self._closed += len(_CJK.findall(text))
        position = 0
        for run in _RUN.finditer(text):
            joins = run.start() == 0 and self._run_open
            if not joins:
                self._close_run()
            letters = _LETTERS.fullmatch(run.group()) is not None
            self._run_letters = letters and (self._run_letters or not joins)
            self._run_open = True
            position = run.end()
        if position < len(text):
            self._close_run()
        return self.count

    def _close_run(self) -> None:
        self._closed += self._run_open and self._run_letters
        self._run_open = False
