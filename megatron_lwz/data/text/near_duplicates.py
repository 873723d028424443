"""Paragraphs that say nearly the same as an earlier one: the Jaccard similarity of their word or character n-grams.

Exact, through an inverted index from n-gram to paragraphs, so that only paragraphs that share something are compared.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

# A CJK character is a unit of its own, any other run of word characters is one: English and Chinese in one pattern.
UNIT = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
"""A word, or one CJK character."""


@dataclass(frozen=True)
class DuplicateReport:
    """`compared` paragraphs were long enough to compare; `duplicates` of them repeat an earlier one."""

    compared: int
    duplicates: int

    @property
    def share(self) -> float:
        """Near-duplicates per compared paragraph, 0 when none was compared."""
        return self.duplicates / self.compared if self.compared else 0.0


def shingles(text: str, size: int) -> frozenset[int]:
    """Hashes of the n-grams of `size` words (CJK: characters), lower case, punctuation left out."""
    units = UNIT.findall(text.lower())
    return frozenset(hash(tuple(units[i : i + size])) for i in range(len(units) - size + 1))


class ParagraphIndex:
    """Tells of each new paragraph whether it is a near-duplicate of one added before."""

    def __init__(self, *, threshold: float = 0.6, shingle: int = 3, minimum_shingles: int = 8) -> None:
        """`threshold`: similarity from which two are near-duplicates; paragraphs below `minimum_shingles` are skipped."""
        self._threshold = threshold
        self._shingle = shingle
        self._minimum = minimum_shingles
        self._sizes: list[int] = []
        self._where: defaultdict[int, list[int]] = defaultdict(list)
        self._seen: set[frozenset[int]] = set()
        self._compared = 0
        self._duplicates = 0

    @property
    def report(self) -> DuplicateReport:
        """The counts so far."""
        return DuplicateReport(self._compared, self._duplicates)

    def add(self, paragraph: str) -> bool:
        """Adds a paragraph; True when it nearly repeats an earlier one."""
        found = shingles(paragraph, self._shingle)
        if len(found) < self._minimum:
            return False
        self._compared += 1
        duplicate = found in self._seen or self._resembles_earlier(found)
        self._duplicates += duplicate
        if found not in self._seen:  # exact copies need no second entry: a text of one line repeated stays linear
            self._seen.add(found)
            for item in found:
                self._where[item].append(len(self._sizes))
            self._sizes.append(len(found))
        return duplicate

    def _resembles_earlier(self, found: frozenset[int]) -> bool:
        shared: Counter[int] = Counter()
        for item in found:
            if item in self._where:
                shared.update(self._where[item])
        return any(
            overlap >= self._threshold * (len(found) + self._sizes[earlier] - overlap)
            for earlier, overlap in shared.items()
        )


def find_duplicates(
    text: str, *, threshold: float = 0.6, shingle: int = 3, minimum_shingles: int = 8
) -> DuplicateReport:
    """Counts near-duplicate paragraphs; a paragraph is a line that is not blank."""
    index = ParagraphIndex(threshold=threshold, shingle=shingle, minimum_shingles=minimum_shingles)
    for paragraph in text.splitlines():
        index.add(paragraph)
    return index.report
