"""Text of foreign origin as the pages show it: escaped, with characters that hide or reorder text spelled out.

`shown` replaces such a character by its code, `⟦U+202E⟧`, so that it can be read and cannot act. `Shown.place` converts
positions in the original text, such as the end of a token, into positions in the text that is shown.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from html import escape
from itertools import accumulate

# Controls but tab and line feed; no-break and zero-width marks that nobody sees; direction marks; line separators; lone
# surrogates; interlinear and tag characters. Joiners (U+200C, U+200D) stay: some scripts and pictures need them.
_HIDDEN = re.compile(
    "\r(?=\n)|[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


@dataclass(frozen=True)
class Shown:
    """A text that can be shown, and where its characters come from."""

    text: str
    _places: tuple[int, ...]
    """Places of the replaced characters in the original, ascending."""
    _growth: tuple[int, ...]
    """Characters that the replacements up to each place have added."""

    def place(self, original: int) -> int:
        """Returns the position in `text` of the position `original` in the original text."""
        before = bisect_left(self._places, original)
        return original + (self._growth[before - 1] if before else 0)


def shown(text: str) -> Shown:
    """Returns `text` with every hidden character as its code. A line end CR LF becomes LF."""
    found = [(match.start(), _code(match)) for match in _HIDDEN.finditer(text)]
    growth = accumulate(len(code) - 1 for _, code in found)
    visible = _HIDDEN.sub(_code, text) if found else text
    return Shown(visible, tuple(place for place, _ in found), tuple(growth))


def html(text: object) -> str:
    """Returns any value as HTML text, also inside a quoted attribute."""
    return escape(shown(str(text)).text, quote=True)


def clip(text: str, most: int) -> str:
    """Returns the text in one line of at most `most` characters, for lists and titles."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _code(match: re.Match[str]) -> str:
    plain_end = match[0] == "\r" and match.string.startswith("\n", match.end())
    return "" if plain_end else f"⟦U+{ord(match[0]):04X}⟧"
