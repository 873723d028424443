"""Incremental conversion of tokens to text, and detection of stop strings that span tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""Last character of a decoded text whose last UTF-8 character is still incomplete."""
_WINDOW = 16
"""Number of tokens that surely hold an incomplete character (at most 3 bytes) and its context."""


class Detokenizer:
    """Returns each piece of text once, as soon as no later token can change it.

    The pieces equal decoding all tokens at once. Only a short window is decoded again: the tokens since the last
    complete character, and some before it as context. Bytes that never become a character do not lengthen the window.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._fresh: list[int] = []
        self._given = 0

    def feed(self, *tokens: int) -> str:
        """Adds tokens. Returns the text that is now certain, which is often empty inside a character."""
        self._fresh += tokens
        text = self._decode(self._context + self._fresh)
        certain = text.removesuffix(BROKEN)
        piece = certain[self._given :]
        if len(certain) == len(text) or len(self._fresh) >= _WINDOW:
            self._context, self._fresh = self._fresh[-_WINDOW:], []
            self._given = len(self._decode(self._context).removesuffix(BROKEN))
        else:
            self._given = max(self._given, len(certain))
        return piece

    def finish(self) -> str:
        """Returns the text held back: broken UTF-8 at the very end."""
        return self._decode(self._context + self._fresh)[self._given :]


class StopFinder:
    """Finds the first stop string in a growing text. It holds back text that may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Adds text.

        Returns (text that is safe to pass on, stop string or None). The text does not contain the stop string.
        """
        self._held += text
        found = [(place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            place, stop = min(found, key=lambda hit: hit[0])
            safe, self._held = self._held[:place], ""
            return safe, stop
        keep = self._open_end()
        safe = self._held[: len(self._held) - keep]
        self._held = self._held[len(safe) :]
        return safe, None

    def finish(self) -> str:
        """Returns the text held back."""
        return self._held

    def _open_end(self) -> int:
        """Returns the length of the longest suffix of the held text that begins a stop string."""
        for size in range(min(self._longest - 1, len(self._held)), 0, -1):
            end = self._held[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
