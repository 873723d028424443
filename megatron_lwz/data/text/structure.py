"""Finds the headings and lists of a text, and their faults: Markdown, "Chapter 3", "第三章", "1.", "（二）", "一、".

Text inside code fences is ignored. Every function reads a line in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from megatron_lwz.data.text.numerals import parse_number, simplify

_LONGEST_TITLE = 80
_HAN = "零〇一二两三四五六七八九十百"
_CHAPTER = re.compile(
    rf"(?:第(?P<han>[{_HAN}]{{1,6}}|\d{{1,3}})(?P<unit>[卷部篇章回节])|"
    r"(?P<word>chapter|part|section|act|book) (?P<number>\d{1,3}|[ivxl]{1,7}|[a-z]{3,9}(?:-[a-z]{3,5})?))(?![\w-])",
    re.IGNORECASE,
)
_ITEM = re.compile(
    rf"(?P<indent>\s{{0,40}})(?:(?P<bullet>[-*+•·])(?=\s|$)|(?P<number>\d{{1,3}})(?P<mark>[.)](?=\s|$)|[、．](?!\d))|"
    rf"[（(](?P<inner>\d{{1,3}}|[{_HAN}]{{1,4}})(?P<close>[）)])|(?P<han>[{_HAN}]{{1,4}})(?P<comma>、))"
)
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50}


@dataclass(frozen=True)
class Heading:
    """A heading. `level` is 1 to 6 by Markdown's marks, or 0 for a line like "Chapter 3".

    `line` is its number among the non-blank lines, from 0.
    """

    level: int
    title: str
    line: int
    kind: str = ""
    number: int | None = None


@dataclass(frozen=True)
class Item:
    """One item of a list. `style` is its bullet or the form of its number. `number` is None for a bullet."""

    indent: int
    style: str
    number: int | None
    text: str
    line: int
    apart: bool = False
    """Whether a blank line precedes the item."""


@dataclass(frozen=True)
class Structure:
    """The headings and items of a text, in order. `paragraphs` counts lines that are neither heading, item nor code."""

    parts: tuple[Heading | Item, ...]
    lines: int
    paragraphs: int

    @property
    def headings(self) -> list[Heading]:
        """All headings."""
        return [part for part in self.parts if isinstance(part, Heading)]

    @property
    def lists(self) -> list[list[Item]]:
        """The lists of the text. Items on neighbouring lines belong to one list, whatever their depth.

        After a blank line, a different marker at the same depth begins a new list.
        """
        found: list[list[Item]] = []
        styles: dict[int, str] = {}  # markers of the last list, by depth
        for part in self.parts:
            if not isinstance(part, Item):
                continue
            follows = bool(found) and found[-1][-1].line == part.line - 1
            if follows and not (part.apart and styles.get(part.indent, part.style) != part.style):
                found[-1].append(part)
            else:
                found.append([part])
                styles = {}
            styles[part.indent] = part.style
        return found


@dataclass(frozen=True)
class Check:
    """Result of a check: the number of places checked, and a description of each fault."""

    places: int
    faults: tuple[str, ...]

    @property
    def value(self) -> float | None:
        """Share of places without a fault; None if the text has no place to check."""
        return 1 - min(len(self.faults), self.places) / self.places if self.places else None


def read_structure(text: str) -> Structure:
    """Finds the headings and list items of a text."""
    parts: list[Heading | Item] = []
    count = paragraphs = 0
    fence = ""
    apart = blank = False
    for line in text.splitlines():
        plain = line.strip()
        if not plain:
            blank = True
            continue
        count, apart, blank = count + 1, blank, False
        if fence or plain.startswith(("```", "~~~")):
            fence = ("" if plain.startswith(fence) else fence) if fence else plain[:3]
            continue
        part = _heading(plain, count - 1) or _item(line, plain, count - 1, apart)
        if part is not None:
            parts.append(part)
        elif plain.strip("-*_= ") or len(plain) < 3:  # not a horizontal rule
            paragraphs += 1
    return Structure(tuple(parts), count, paragraphs)


def check_headings(found: Structure) -> Check:
    """Checks headings. Faults: no title; a level skipped on the way down; no text below; a sibling of the same name."""
    headings = found.headings
    faults: list[str] = []
    path: list[tuple[int, set[str]]] = [(-1, set())]  # open levels, with the names below each
    for heading, after in zip_longest(headings, headings[1:]):
        while path[-1][0] >= heading.level:
            path.pop()
        above, siblings = path[-1]
        next_line = after.line if after else found.lines
        deeper = after is not None and (
            after.level > heading.level or (after.level == 0 and after.kind != heading.kind)
        )
        if not heading.title:
            faults.append("a heading without a title")
        elif heading.title.casefold() in siblings:
            faults.append(f"two headings '{heading.title:.40}'")
        elif above > 0 and heading.level > above + 1:
            faults.append(f"level {heading.level} below level {above}: '{heading.title:.40}'")
        elif next_line == heading.line + 1 and not deeper:
            faults.append(f"nothing below '{heading.title:.40}'")
        siblings.add(heading.title.casefold())
        path.append((heading.level, set()))
    return Check(len(headings), tuple(faults))


def check_numbering(found: Structure) -> Check:
    """Checks numbering. A fault is a chapter or item number that is not the last one plus 1. Both may restart at 1."""
    faults: list[str] = []
    places = 0
    last: dict[str, int] = {}
    for heading in (h for h in found.headings if h.number is not None):
        assert heading.number is not None
        places += 1
        if heading.number not in (last.get(heading.kind, 0) + 1, 1) or heading.number == last.get(heading.kind):
            faults.append(f"'{heading.title:.40}' after number {last.get(heading.kind, 0)}")
        last[heading.kind] = heading.number
    counts: dict[tuple[int, str], tuple[int, int]] = {}  # (indent, style) → (number, line)
    for item in (part for part in found.parts if isinstance(part, Item) and part.number is not None):
        assert item.number is not None
        places += 1
        before, line = counts.get((item.indent, item.style), (0, -2))
        fresh = item.number in (0, 1) and line != item.line - 1
        if item.number != before + 1 and not fresh:
            faults.append(f"item {item.number} after item {before}")
        counts = {key: value for key, value in counts.items() if key[0] <= item.indent}
        counts[item.indent, item.style] = (item.number, item.line)
    return Check(places, tuple(faults))


def check_lists(found: Structure) -> Check:
    """Checks lists. Faults: an item without text, a list of one item, different markers at the same depth of a list."""
    faults: list[str] = []
    places = 0
    for items in found.lists:
        places += len(items)
        numbered_alone = items[0].number is not None  # numbered paragraphs stand apart from each other
        if len(items) == 1 and not numbered_alone:
            faults.append(f"a list of one: '{items[0].text:.40}'")
        styles: dict[int, str] = {}
        for item in items:
            if not item.text:
                faults.append("an item without text")
            elif styles.setdefault(item.indent, item.style) != item.style:
                faults.append(f"'{item.style}' among '{styles[item.indent]}'")
            styles = {indent: style for indent, style in styles.items() if indent <= item.indent}
    return Check(places, tuple(faults))


def check_asked(found: Structure, asked: Sequence[tuple[str, int, int]]) -> Check:
    """Checks requested counts. A fault is a count outside its range.

    `asked` holds tuples (headings, lists, items or paragraphs; lower; upper) with inclusive bounds.
    """
    counts = {
        "headings": len(found.headings),
        "lists": len(found.lists),
        "items": sum(map(len, found.lists)),
        "paragraphs": found.paragraphs,
    }
    missed = (f"{counts[k]} {k}, asked {low} to {high}" for k, low, high in asked if not low <= counts[k] <= high)
    return Check(len(asked), tuple(missed))


Counted = Literal["headings", "lists", "items", "paragraphs"]
COUNTED: tuple[Counted, ...] = ("headings", "lists", "items", "paragraphs")


def _heading(plain: str, line: int) -> Heading | None:
    level = len(plain) - len(plain.lstrip("#"))
    marked = 1 <= level <= 6 and (len(plain) == level or plain[level].isspace())
    title = plain[level:].strip().rstrip("#").rstrip() if marked else plain.strip("*_ ")
    chapter = _CHAPTER.match(title) if len(title) <= _LONGEST_TITLE else None
    if chapter and not marked and _is_sentence(title, chapter):
        chapter = None
    number = _number(chapter["han"] or chapter["number"].lower()) if chapter else None
    if not marked and number is None:
        return None
    kind = (chapter["unit"] or chapter["word"].lower()) if chapter and number is not None else ""
    return Heading(level if marked else 0, title, line, kind, number)


def _is_sentence(title: str, chapter: re.Match[str]) -> bool:
    """Returns whether a line only begins like a chapter title: "Part one of the story was …", "第一章写的是他，"."""
    runs_on = chapter["word"] is not None and title[chapter.end() :].lstrip()[:1].islower()
    return runs_on or title[-1] in "。,，;；!！?？"


def _item(line: str, plain: str, line_number: int, apart: bool) -> Item | None:
    found = _ITEM.match(line)
    if found is None or (found["bullet"] and len(plain) >= 3 and not plain.strip("-*_ ")):  # a horizontal rule: * * *
        return None
    text = line[found.end() :].strip()
    if found["bullet"]:
        return Item(len(found["indent"]), found["bullet"], None, text, line_number, apart)
    number = _number(found["number"] or found["inner"] or found["han"])
    if number is None:
        return None
    style = "（）" if found["inner"] else (found["mark"] or found["comma"])
    return Item(len(found["indent"]), style, number, text, line_number, apart)


def _number(text: str) -> int | None:
    if text.isdigit():
        return int(text)
    if set(text) <= set(_ROMAN):
        values = [_ROMAN[letter] for letter in text]
        return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
    parsed = parse_number(simplify(text))
    return int(parsed[0]) if parsed else None
