"""Texts that a template makes, with a note of which stretches it wrote itself.

Only there a control token is meant. Whatever stands in a prompt, a reply or a document is text, even where it spells
`<|endoftext|>`. `Tokenizer.encode` keeps the two apart. A plain `str` is data.
"""

from __future__ import annotations

from typing import Self


class Markup(str):
    """A text and the stretches [start, stop) that a template wrote. Operations of `str` return plain data."""

    own: tuple[tuple[int, int], ...]

    def __new__(cls, text: str, own: tuple[tuple[int, int], ...] | None = None) -> Self:
        """Takes a text that a template wrote as a whole, or its stretches `own`."""
        made = super().__new__(cls, text)
        made.own = own if own is not None else ((0, len(text)),)
        return made


def join(*parts: str) -> Markup:
    """Returns the parts as one text. What is Markup in a part stays Markup; the rest is data."""
    own: list[tuple[int, int]] = []
    at = 0
    for part in parts:
        if isinstance(part, Markup):
            own += ((at + start, at + stop) for start, stop in part.own)
        at += len(part)
    return Markup("".join(parts), tuple(own))
