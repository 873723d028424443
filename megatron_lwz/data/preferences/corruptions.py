"""Corruptions of a reply: each one makes a (good, bad) pair of texts out of a good text.

A corruption returns None when it does not apply to the text (a single paragraph has no order) or when this random draw
failed. The caller then draws again. With a `tolerance`, a corruption keeps the length where it can; the caller checks
the lengths.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from megatron_lwz.data.preferences.documents import Document, Pool
from megatron_lwz.data.preferences.pieces import Pieces, lead_of, sentences, size, with_lead
from megatron_lwz.data.text.length_request import find_length_request

Corruption = Callable[[Document, Pool, random.Random, "float | None"], "tuple[str, str] | None"]

_NEGATED_ENGLISH = (
    (re.compile(r"\b(is|are|was|were|can|could|will|would|should|must) not\b"), r"\1"),
    (re.compile(r"\b(is|are|was|were|can|could|will|would|should|must)\b"), r"\1 not"),
    (re.compile(r"\balways\b"), "never"),
    (re.compile(r"\bnever\b"), "always"),
    (re.compile(r"\bnobody\b"), "everybody"),
    (re.compile(r"\bevery\b"), "no"),
    (re.compile(r"\ball\b"), "none of"),
    (re.compile(r"\b(have|has|had)\b"), r"\1 no"),
)
_NEGATED_CHINESE = (
    (re.compile(r"不是|没有"), lambda m: {"不是": "是", "没有": "有"}[m.group()]),
    (re.compile(r"没有人"), "人人"),
    (re.compile(r"(?<!不)(是|会|能|要|在)"), r"不\1"),
    (re.compile(r"有"), "没有"),
    (re.compile(r"很"), "不"),
    (re.compile(r"总"), "从不"),
)
_ASKS_STRUCTURE = re.compile(
    r"\b(headings?|titles?|bullets?|lists?|numbered|sections?)\b|标题|列表|分点|小标题|编号", re.I
)
_MARK = re.compile(r"^\s*(?:#{1,6}\s+|[-*+]\s+|\d+[.)、]\s*)", re.MULTILINE)
_CUT = {"en": re.compile(r"\s+"), "zh": re.compile(r"(?<=[\u4e00-\u9fff])")}


def shuffled(document: Document, pool: Pool, rng: random.Random, tolerance: float | None) -> tuple[str, str] | None:
    """Puts the same pieces in another order."""
    pieces = document.pieces
    if len(set(pieces.items)) < 2:
        return None
    items = list(pieces.items)
    rng.shuffle(items)
    moved = sum(a != b for a, b in zip(items, pieces.items, strict=True))
    return None if moved < min(2, len(items)) else (document.reply, pieces.with_items(items).text)


def repeated(document: Document, pool: Pool, rng: random.Random, tolerance: float | None) -> tuple[str, str] | None:
    """Replaces the last pieces by copies of one earlier piece, under the leads of the pieces that are replaced.

    Without a `tolerance`, half of the draws append copies of random pieces instead.
    """
    pieces = document.pieces
    if len(pieces) < 2:
        return None
    items = list(pieces.items)
    if tolerance is None and rng.random() < 0.5:
        again = rng.sample(items, max(1, len(items) // 2))
        return document.reply, pieces.with_items([*items, *again]).text
    source = rng.randrange(len(items) - 1)
    count = rng.randint(1, len(items) - 1 - source)
    for place in range(len(items) - count, len(items)):
        items[place] = with_lead(lead_of(items[place]), items[source])
    return _changed(document, pieces, items)


def truncated(document: Document, pool: Pool, rng: random.Random, tolerance: float | None) -> tuple[str, str] | None:
    """Cuts the text off within a sentence.

    With a `tolerance`, the good text is cut to about the same length, at the end of a sentence.
    """
    text, cut = document.reply, _CUT[document.language]
    starts = [match.end() for match in cut.finditer(text) if match.end() < len(text)]
    ends = set()
    position = 0
    for sentence in sentences(text):
        position += len(sentence.rstrip())
        ends.add(position)
        position += len(sentence) - len(sentence.rstrip())
    inside = [start for start in starts if len(text[:start].rstrip()) not in ends and start > len(text) // 4]
    if not inside:
        return None
    if tolerance is None:
        return text, text[: rng.choice(inside)].rstrip(" ,，、")
    whole = [end for end in ends if end > len(text) // 4]
    if not whole:
        return None
    end = rng.choice(sorted(whole))
    kept = size(text[:end])
    near = [start for start in inside if abs(size(text[:start]) - kept) <= tolerance * kept]
    return (text[:end], text[: rng.choice(near)].rstrip(" ,，、")) if near else None


def off_topic(document: Document, pool: Pool, rng: random.Random, tolerance: float | None) -> tuple[str, str] | None:
    """Takes the reply to another request, or replaces the second half of this reply by part of another."""
    other = pool.other(document, rng, tolerance)
    if other is None:
        return None
    if rng.random() < 0.5 or len(document.pieces) < 2 or len(other.pieces) < 2:
        return document.reply, other.reply
    items, foreign = list(document.pieces.items), other.pieces.items
    for place in range(len(items) // 2, len(items)):
        items[place] = with_lead(lead_of(items[place]), foreign[min(place, len(foreign) - 1)])
    return _changed(document, document.pieces, items)


def contradicted(document: Document, pool: Pool, rng: random.Random, tolerance: float | None) -> tuple[str, str] | None:
    """Makes later pieces deny earlier ones."""
    pieces = document.pieces
    if len(pieces) < 2:
        return None
    items = list(pieces.items)
    for _ in range(rng.randint(1, max(1, len(items) // 2))):
        denied, place = sorted(rng.sample(range(len(items)), 2))
        content = pieces.items[denied][len(lead_of(pieces.items[denied])) :]
        items[place] = lead_of(items[place]) + deny(content, document.language)
    return _changed(document, pieces, items)


def requirement(document: Document, pool: Pool, rng: random.Random, tolerance: float | None) -> tuple[str, str] | None:
    """Drops something that the request asks for: its subject, the structure, or (without a `tolerance`) the length."""
    ways = [_without_subject]
    if _ASKS_STRUCTURE.search(document.prompt) and _MARK.search(document.reply):
        ways.append(_without_structure)
    if tolerance is None and find_length_request(document.prompt) is not None:
        ways.append(_without_length)
    return rng.choice(ways)(document, pool, rng)


def _without_subject(document: Document, pool: Pool, rng: random.Random) -> tuple[str, str] | None:
    """Removes every mention of the subject: replaces it by a pronoun, or the pieces that name it by other pieces."""
    subjects = pool.subjects(document)
    if not subjects:
        return None
    pieces, subject = document.pieces, subjects[0]
    named = [place for place, item in enumerate(pieces.items) if subject in item.lower()]
    items = list(pieces.items)
    other = pool.other(document, rng, None) if len(named) * 2 <= len(items) else None
    for place in named:
        if other is not None:
            item = other.pieces.items[min(place, len(other.pieces) - 1)]
            items[place] = with_lead(lead_of(items[place]), item)
        else:
            items[place] = _pronoun(items[place], subject, document.language)
    return _changed(document, pieces, items)


def _pronoun(text: str, subject: str, language: str) -> str:
    if language == "zh":
        return text.replace(subject, "它")
    pattern = (
        rf"\b(?:the |an? )?(?:[a-z]+ )?{re.escape(subject)}\w*"
        if " " in subject
        else rf"\b(?:the |an? )?{re.escape(subject)}\w*"
    )
    return re.sub(pattern, "it", text, flags=re.I)


def _without_structure(document: Document, pool: Pool, rng: random.Random) -> tuple[str, str] | None:
    plain = _MARK.sub("", document.reply)
    return None if plain == document.reply else (document.reply, plain)


def _without_length(document: Document, pool: Pool, rng: random.Random) -> tuple[str, str] | None:
    """Keeps only the first half of the pieces."""
    pieces = document.pieces
    kept = pieces.with_items(pieces.items[: max(1, len(pieces) // 2)])
    return None if len(kept) == len(pieces) else (document.reply, kept.text)


def deny(text: str, language: str) -> str:
    """Returns the opposite statement: negates the first word that a rule matches, else denies the whole sentence."""
    rules = _NEGATED_CHINESE if language == "zh" else _NEGATED_ENGLISH
    for pattern, turned in rules:
        changed, count = pattern.subn(turned, text, count=1)
        if count:
            return changed
    return f"并非{text}" if language == "zh" else f"it is not true that {text[:1].lower()}{text[1:]}"


def _changed(document: Document, pieces: Pieces, items: list[str]) -> tuple[str, str] | None:
    text = pieces.with_items(items).text
    return None if text.split() == document.reply.split() else (document.reply, text)


CORRUPTIONS: dict[str, Corruption] = {
    "requirement": requirement,
    "shuffled": shuffled,
    "repeated": repeated,
    "truncated": truncated,
    "off_topic": off_topic,
    "contradicted": contradicted,
}
"""Maps the kind of a pair to the corruption that makes it."""
