"""Cuts a long text into paragraphs, and paragraphs into chunks that a browser lays out only when they come into view."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from megatron_lwz.data.templates import detect_language

LONGEST = 1200
"""Characters from which a line is cut: one line of 40,000 characters would be laid out as a whole."""
CHUNK = 2400
"""Width after which a chunk ends with its paragraph, in narrow characters."""
# A cut is made after a sentence, else after a space, else anywhere.
_CUTS = (re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？；…][”’」』）]*"), re.compile(r"\s+|[，、：]"))


@dataclass(frozen=True)
class Paragraph:
    """One line of the text, or a piece of a long line: text[start:end]."""

    start: int
    end: int
    gap: bool
    """Whether a blank line stands before it."""
    goes_on: bool
    """Whether it continues the line of the paragraph before."""


def paragraphs(text: str) -> Iterator[Paragraph]:
    """Yields the lines that are not blank, in order."""
    start, gap = 0, False
    for line in text.splitlines(keepends=True):
        end = start + len(line.rstrip("\n"))
        if not line.strip():
            gap = True
        else:
            first = True
            for low, high in _pieces(text, start, end):
                yield Paragraph(low, high, gap and first, not first)
                first = False
            gap = False
        start += len(line)


def chunks(text: str) -> Iterator[list[Paragraph]]:
    """Yields the paragraphs in chunks of about CHUNK narrow characters; a wide one, such as a Chinese one, counts as two."""
    chunk: list[Paragraph] = []
    size = 0
    for paragraph in paragraphs(text):
        chunk.append(paragraph)
        size += _width(text[paragraph.start : paragraph.end])
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def lang(text: str) -> str:
    """Returns the attribute by which a browser picks fonts and line breaks."""
    return "zh-Hans" if detect_language(text) == "chinese" else "en"


def prose(text: str, offset: int = 0) -> str:
    """Returns a text that `shown` gave as HTML. `offset` is the place of its first character in the whole response."""
    found = []
    for chunk in chunks(text):
        inside = "".join(_paragraph(text, paragraph, offset) for paragraph in chunk)
        found.append(f'<div class="chunk">{inside}</div>')
    return "".join(found)


def headings(text: str, offset: int = 0, most: int = 60) -> list[tuple[int, int, str]]:
    """Returns the Markdown headings as (place, level, title)."""
    found = []
    for match in re.finditer(r"^(#{1,6})[ \t]+(\S[^\n]{0,200})", text, re.MULTILINE):
        found.append((offset + match.start(), len(match[1]), match[2].strip("# \t")))
        if len(found) == most:
            break
    return found


def _paragraph(text: str, paragraph: Paragraph, offset: int) -> str:
    line = text[paragraph.start : paragraph.end]
    kinds = [
        name for name, holds in (("gap", paragraph.gap), ("on", paragraph.goes_on), ("h", _is_heading(line))) if holds
    ]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f'<p dir="auto"{kind} data-o="{offset + paragraph.start}">{escape(line)}</p>'


def _is_heading(line: str) -> bool:
    return re.match(r"#{1,6}[ \t]+\S", line) is not None


def _width(line: str) -> int:
    return len(line) if line.isascii() else sum(2 if char >= "\u2e80" else 1 for char in line)


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end - start > LONGEST:
        cut = next(
            (cut for pattern in _CUTS if (cut := _last(pattern, text, start + LONGEST // 2, start + LONGEST))), 0
        )
        cut = cut or start + LONGEST
        yield start, cut
        start = cut
    if start < end:
        yield start, end


def _last(pattern: re.Pattern[str], text: str, low: int, high: int) -> int:
    """Returns the end of the last match within text[low:high], 0 if there is none."""
    return max((match.end() for match in pattern.finditer(text, low, high)), default=0)
