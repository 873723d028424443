"""Cuts long texts into parts by position, and measures each part without a judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_lwz.config.sections import FormatReward
from megatron_lwz.data.text.near_duplicates import UNIT, ParagraphIndex, paragraphs
from megatron_lwz.data.text.structure import read_structure
from megatron_lwz.evaluation.responses import Response
from megatron_lwz.evaluation.slop import SlopLists
from megatron_lwz.evaluation.text_metrics import distinct_units, expected_language, language_share

_LINE = re.compile(r"\n\s*")
_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？；…][”’」』）]*")
_LEEWAY = 0.25
"""Share of a part by which a cut may move to the end of a paragraph or sentence."""
LEAST = 25
"""Words + CJK characters per part below which a text is too short to be cut."""
_CHAPTERS = ("chapter", "章", "回")
_REPEAT = 8
"""Units in a row that count as repeated: long enough that honest prose, however long, hardly ever repeats them."""


@dataclass(frozen=True)
class Piece:
    """A text in parts, in order."""

    id: str
    sample: int
    parts: Sequence[str]
    prompt: str | None = None
    language: str | None = None


def unit_starts(text: str) -> list[int]:
    """Returns where each word and CJK character begins."""
    return [found.start() for found in UNIT.finditer(text)]


def cut_parts(text: str, count: int) -> list[str]:
    """Cuts `text` into `count` parts of about equal length in words + CJK characters.

    A cut lies at the end of the nearest paragraph if one is within a quarter of a part, else at that of the nearest
    sentence, else between two words. The parts joined are the text. Needs at least `count` units.
    """
    starts = unit_starts(text)
    size = len(starts) / count
    cuts = [0]
    for number in range(1, count):
        wanted = number * size
        low, high = (starts[round(wanted + side * _LEEWAY * size)] for side in (-1, 1))
        place = starts[round(wanted)]
        ends = next((e for p in (_LINE, _SENTENCE) if (e := [m.end() for m in p.finditer(text, low, high)])), [place])
        cuts.append(min(ends, key=lambda end: abs(end - place)))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def cut_chapters(text: str) -> list[str]:
    """Cuts `text` before the headings of its chapters; a single part if it has fewer than two chapters.

    Chapters are lines like "Chapter 3" and "第三章", else the Markdown headings of the highest level that has several. What
    stands before the first one, or has fewer than LEAST units, belongs to its neighbour. The parts joined are the text.
    """
    headings = read_structure(text).headings
    found = [heading.line for heading in headings if heading.kind in _CHAPTERS]
    levels = [heading.level for heading in headings if heading.level]
    if len(found) < 2:
        several = [level for level in levels if levels.count(level) > 1]
        found = [heading.line for heading in headings if several and heading.level == min(several)]
    starts, place = [], 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            starts.append(place)
        place += len(line)
    parts: list[str] = []
    cuts = [starts[line] for line in found]
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if parts and (len(unit_starts(text[start:end])) < LEAST or len(unit_starts(parts[-1])) < LEAST):
            parts[-1] += text[start:end]
        else:
            parts.append(text[start:end])
    return parts


def cut_responses(
    responses: Sequence[Response], *, parts: int, every: int | None = None, chapters: bool = False
) -> tuple[list[Piece], int]:
    """Returns the responses in parts, and the number of those that are too short for it.

    `parts`: so many of each text, which needs LEAST units for each. Instead: `every`: parts of about so many units, or
    `chapters`: the text's own ones; of texts that have two or more.
    """
    pieces, short = [], 0
    for response in responses:
        length = len(unit_starts(response.text))
        count = round(length / every) if every else parts
        enough = count > 1 and length >= (2 * count if every else LEAST * count)
        cut = cut_chapters(response.text) if chapters else cut_parts(response.text, count) if enough else []
        if len(cut) < 2:
            short += 1
        else:
            pieces.append(Piece(response.id, response.sample, cut, response.prompt, response.language))
    return pieces, short


def measure_parts(piece: Piece, section: FormatReward, slop: SlopLists | None = None) -> list[dict[str, Any]]:
    """Returns the metrics of every part. Metrics that do not apply are left out.

    distinct_1, distinct_2: of the same number of units in every part (that of the shortest), since longer texts have
    fewer. repeated: share of the part's n-grams of 8 units that stand earlier in the text. near_duplicates: share of the
    part's paragraphs that nearly repeat an earlier one of the text, as `section` defines them.
    """
    language = expected_language(piece.prompt, piece.language) if piece.prompt is not None else None
    index = ParagraphIndex(
        threshold=section.duplicate_threshold, shingle=section.shingle, minimum_shingles=section.minimum_shingles
    )
    units = [UNIT.findall(part.lower()) for part in piece.parts]
    shortest = min(map(len, units))
    seen: set[int] = set()
    before: list[str] = []
    found = []
    for part, words in zip(piece.parts, units, strict=True):
        row: dict[str, Any] = {"length": len(words)}
        for size in (1, 2):
            if (share := distinct_units(words[:shortest], size)) is not None:
                row[f"distinct_{size}"] = share
        line = [*before, *words]
        grams = [hash(tuple(line[i : i + _REPEAT])) for i in range(len(line) - _REPEAT + 1)]
        before = line[-_REPEAT + 1 :]
        if grams:
            row["repeated"] = _seen_again(grams, seen)
        row |= _duplicates(part, index, section)
        share = language_share(part, language) if language else None
        if share is not None:
            row["language_share"] = share
        if slop is not None and (score := slop.score(part)) is not None:
            row["slop"] = score
        found.append(row)
    return found


def _seen_again(grams: Sequence[int], seen: set[int]) -> float:
    """Returns the share of n-grams that are in `seen` or earlier in `grams`, and adds them to `seen`."""
    again = 0
    for gram in grams:
        again += gram in seen
        seen.add(gram)
    return again / len(grams)


def _duplicates(part: str, index: ParagraphIndex, section: FormatReward) -> dict[str, float]:
    """Returns the share of near-duplicates among the part's paragraphs that are long enough to compare, if there are any."""
    before = index.report
    shortest = section.minimum_shingles + section.shingle - 1
    for paragraph in paragraphs(part, longest=section.longest_paragraph, shortest=shortest):
        index.add(paragraph)
    compared = index.report.compared - before.compared
    return {"near_duplicates": (index.report.duplicates - before.duplicates) / compared} if compared else {}
