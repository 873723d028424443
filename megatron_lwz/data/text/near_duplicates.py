"""Finds paragraphs that nearly repeat an earlier one, by the Jaccard similarity of their word or character n-grams.

The search is exact and uses an inverted index from n-gram to paragraphs. Only paragraphs that share one of a new
paragraph's rarest n-grams can be similar enough (prefix filtering: Chaudhuri et al. 2006). The search ends at the first
similar paragraph. docs/format.md compares it with MinHash and LSH, which are worthwhile for whole corpora
(`data.corpora`) but not for one text.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

# Each CJK character is one unit, and so is any other run of word characters: one pattern for English and Chinese.
UNIT = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
"""A word, or one CJK character."""
# A sentence ends after its mark and any closing quote. The lookarounds hold no repetition, so any text is linear time.
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)\]])\s+|(?<=[。！？；])(?![。！？；…”’」』）])|(?<=[。！？；][”’」』）])"
)


@dataclass(frozen=True)
class DuplicateReport:
    """Number of paragraphs that were long enough to compare, and of those that repeat an earlier one."""

    compared: int
    duplicates: int

    @property
    def share(self) -> float:
        """Share of near-duplicates among the compared paragraphs, 0 when none was compared."""
        return self.duplicates / self.compared if self.compared else 0.0


def shingles(text: str, size: int) -> frozenset[int]:
    """Returns the hashes of the n-grams of `size` words (CJK: characters), in lower case and without punctuation."""
    return frozenset(_grams(text, size))


def share_copied(text: str, source: frozenset[int], size: int) -> float:
    """Returns the share of the n-grams of `text` that stand in `source`, the `shingles` of another text; 0 if it has none."""
    grams = _grams(text, size)
    return sum(gram in source for gram in grams) / len(grams) if grams else 0.0


def paragraphs(text: str, *, longest: int = 0, shortest: int = 10) -> Iterator[str]:
    """Yields the non-blank lines of `text`. Splits a line of more than `longest` words + CJK characters into sentences.

    Otherwise text that repeats itself without a line break would be a single paragraph without a duplicate. Sentences
    of fewer than `shortest` units are joined to the next. With `longest` 0, lines are never split.
    """
    for line in text.splitlines():
        if not line.strip():
            continue
        if not longest or len(line) <= longest or len(UNIT.findall(line)) <= longest:
            yield line
            continue
        start = units = position = 0
        for end in [*(found.end() for found in _SENTENCE_END.finditer(line)), len(line)]:
            units += len(UNIT.findall(line, position, end))
            position = end
            if start < end and (units >= shortest or end == len(line)):
                yield line[start:end]
                start, units = end, 0


class ParagraphIndex:
    """Finds for each new paragraph whether it is a near-duplicate of an earlier one."""

    def __init__(self, *, threshold: float = 0.6, shingle: int = 3, minimum_shingles: int = 8) -> None:
        """Takes the similarity from which two paragraphs are near-duplicates, and the n-gram size.

        Paragraphs of fewer than `minimum_shingles` n-grams are skipped.
        """
        self._threshold = threshold
        self._shingle = shingle
        self._minimum = minimum_shingles
        self._sets: list[frozenset[int]] = []
        self._where: defaultdict[int, list[int]] = defaultdict(list)
        self._seen: set[frozenset[int]] = set()
        self._compared = 0
        self._duplicates = 0

    @property
    def report(self) -> DuplicateReport:
        """Counts of the paragraphs added so far."""
        return DuplicateReport(self._compared, self._duplicates)

    def add(self, paragraph: str) -> bool:
        """Adds a paragraph. Returns True if it nearly repeats an earlier one."""
        grams = _grams(paragraph, self._shingle)
        if len(grams) < self._minimum:  # repeated n-grams count, so that a loop of two words is not too short
            return False
        found = frozenset(grams)
        self._compared += 1
        duplicate = found in self._seen or self._resembles_earlier(found)
        self._duplicates += duplicate
        if found not in self._seen:  # exact copies get no second entry, so one line repeated takes linear time
            self._seen.add(found)
            for gram in found:
                self._where[gram].append(len(self._sets))
            self._sets.append(found)
        return duplicate

    def _resembles_earlier(self, found: frozenset[int]) -> bool:
        """Returns whether an earlier paragraph is similar enough.

        A similar one shares at least `needed` n-grams, and so at least one of any `len(found) - needed + 1` of them.
        """
        needed = math.ceil(self._threshold * len(found))
        known = sorted((places for gram in found if (places := self._where.get(gram))), key=len)
        unknown = len(found) - len(known)
        compared: set[int] = set()
        for places in known[: max(0, len(found) - needed + 1 - unknown)]:
            for place in reversed(places):
                if place in compared:
                    continue
                compared.add(place)
                earlier = self._sets[place]
                overlap = len(found & earlier)
                if overlap >= self._threshold * (len(found) + len(earlier) - overlap):
                    return True
        return False


def find_duplicates(
    text: str, *, threshold: float = 0.6, shingle: int = 3, minimum_shingles: int = 8, longest: int = 0
) -> DuplicateReport:
    """Counts near-duplicate paragraphs. `longest` is that of `paragraphs`."""
    index = ParagraphIndex(threshold=threshold, shingle=shingle, minimum_shingles=minimum_shingles)
    for paragraph in paragraphs(text, longest=longest, shortest=minimum_shingles + shingle - 1):
        index.add(paragraph)
    return index.report


def _grams(text: str, size: int) -> list[int]:
    """Returns the hash of every n-gram of `size` units, in order and with repeats."""
    units = UNIT.findall(text.lower())
    return [hash(tuple(units[i : i + size])) for i in range(len(units) - size + 1)]
