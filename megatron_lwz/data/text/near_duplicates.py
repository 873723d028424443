"""Paragraphs that say nearly the same as an earlier one: the Jaccard similarity of their word or character n-grams.

Exact, through an inverted index from n-gram to paragraphs. Only paragraphs that share one of a new paragraph's rarest
n-grams can be similar enough (prefix filtering: Chaudhuri et al. 2006), and the search ends at the first that is.
docs/format.md compares it with MinHash and LSH, which pay for whole corpora (`data.corpora`), not for one text.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

# A CJK character is a unit of its own, any other run of word characters is one: English and Chinese in one pattern.
UNIT = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
"""A word, or one CJK character."""
# Where a sentence ends: after its mark and a closing quote; no repetition inside, so hostile text costs linear time.
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)\]])\s+|(?<=[。！？；])(?![。！？；…”’」』）])|(?<=[。！？；][”’」』）])"
)


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


def paragraphs(text: str, *, longest: int = 0, shortest: int = 10) -> Iterator[str]:
    """The lines of `text` that are not blank; one of more than `longest` words + CJK characters, sentence by sentence.

    Text that repeats itself without a line break would otherwise be one paragraph without an equal. Sentences of fewer than
    `shortest` units are joined to the next. `longest` 0: lines are never cut.
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
    """Tells of each new paragraph whether it is a near-duplicate of one added before."""

    def __init__(self, *, threshold: float = 0.6, shingle: int = 3, minimum_shingles: int = 8) -> None:
        """`threshold`: similarity from which two are near-duplicates; paragraphs below `minimum_shingles` are skipped."""
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
        """The counts so far."""
        return DuplicateReport(self._compared, self._duplicates)

    def add(self, paragraph: str) -> bool:
        """Adds a paragraph; True when it nearly repeats an earlier one."""
        units = UNIT.findall(paragraph.lower())
        grams = [hash(tuple(units[i : i + self._shingle])) for i in range(len(units) - self._shingle + 1)]
        if len(grams) < self._minimum:  # n-grams that repeat count: a loop of two words is long, not short
            return False
        found = frozenset(grams)
        self._compared += 1
        duplicate = found in self._seen or self._resembles_earlier(found)
        self._duplicates += duplicate
        if found not in self._seen:  # exact copies need no second entry: a text of one line repeated stays linear
            self._seen.add(found)
            for gram in found:
                self._where[gram].append(len(self._sets))
            self._sets.append(found)
        return duplicate

    def _resembles_earlier(self, found: frozenset[int]) -> bool:
        """A similar paragraph shares at least `needed` n-grams, so at least one of any `len(found) - needed + 1`."""
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
    """Counts near-duplicate paragraphs (see `paragraphs` for `longest`)."""
    index = ParagraphIndex(threshold=threshold, shingle=shingle, minimum_shingles=minimum_shingles)
    for paragraph in paragraphs(text, longest=longest, shortest=minimum_shingles + shingle - 1):
        index.add(paragraph)
    return index.report
