"""Splits a text into pieces that can be moved, dropped and replaced: paragraphs, or sentences if there are few."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_lwz.data.text.length import count_units

_SENTENCE = re.compile(r"[^.!?。！？…]+[.!?。！？…]*[\"'”’」』)\]]*\s*|[.!?。！？…]+\s*")
_LEAD = re.compile(r"^(?:[A-Za-z]+,\s|[\u4e00-\u9fff]{1,4}，|\d+[.)、]\s*|[#>*-]+\s+)")
_FEW = 3


@dataclass(frozen=True)
class Pieces:
    """The pieces of a text and the separator between them. Joining them gives the text, up to white space."""

    items: tuple[str, ...]
    joint: str

    @property
    def text(self) -> str:
        """The whole text."""
        return self.joint.join(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def with_items(self, items: Iterable[str]) -> Pieces:
        """Returns other pieces with the same separator."""
        return Pieces(tuple(items), self.joint)


def split_pieces(text: str) -> Pieces:
    """Splits into paragraphs (non-blank lines) if there are at least three or as many as sentences, else sentences."""
    text = text.strip()
    paragraphs = tuple(line.strip() for line in text.splitlines() if line.strip())
    found = sentences(text)
    if len(paragraphs) >= min(_FEW, len(found)):
        return Pieces(paragraphs, "\n\n" if "\n\n" in text else "\n")
    cjk = sum("\u4e00" <= character <= "\u9fff" for character in text) * 2 > len(text)
    return Pieces(tuple(sentence.strip() for sentence in found), "" if cjk else " ")


def sentences(text: str) -> tuple[str, ...]:
    """Returns the sentences, each with the white space after it."""
    return tuple(found for found in _SENTENCE.findall(text) if found.strip())


def lead_of(piece: str) -> str:
    """Returns the lead of a piece (`First, `, `第一，`, `1. `, `## `), or "" if it has none."""
    found = _LEAD.match(piece)
    return found.group() if found else ""


def with_lead(lead: str, piece: str) -> str:
    """Returns the piece with another lead: `Second, ` + `First, the boats …` = `Second, the boats …`."""
    return lead + piece[len(lead_of(piece)) :]


def size(text: str) -> int:
    """Returns the length in words and CJK characters."""
    return count_units(text)
