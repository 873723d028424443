"""How far texts use the same words: the Jaccard similarity of their sets of n-grams, for all pairs of a group at once.

It is measured for every group of every step, so nothing here loops over words in Python.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from megatron_lwz.data.hashing import mix

SIZE = 4
"""Size of an n-gram, in words (CJK: characters), as `near_duplicates.UNIT` counts them."""
MOST = 2048
"""N-grams up to which a text is compared as a whole; of a longer one, those with the smallest hashes are compared."""

_WORD, _CJK = 1, 2
_LARGEST = np.uint64(2**64 - 1)
_PLACES = mix(np.arange(64, dtype=np.uint64)) | np.uint64(1)
"""Factor of a character by its place in the word."""


def sameness(texts: Sequence[str]) -> float | None:
    """Returns the mean similarity over all pairs, 0 (nothing in common) to 1 (equal texts); None for fewer than two texts."""
    if len(texts) < 2:
        return None
    return float(similarities(texts)[np.triu_indices(len(texts), 1)].mean())


def similarities(texts: Sequence[str]) -> NDArray[np.float64]:
    """Returns the Jaccard similarity [N, N] of the texts' sets of n-grams; the diagonal is 1.

    Case, punctuation and white space do not count. A text of fewer than SIZE units is one n-gram of its own length, so two
    blank texts are equal. Exact for texts of at most MOST n-grams, else an estimate by bottom-k sketches (Cohen & Kaplan,
    2007) with a standard error below 0.012; equal texts give exactly 1. The same in every process.
    """
    sketches = [_sketch(unit_hashes(text)) for text in texts]
    bounds = np.array([bound for _, bound in sketches], np.uint64)
    # Of a pair, n-grams up to the lower bound are known of both texts.
    counts = np.stack([np.searchsorted(kept, np.minimum(bound, bounds), "right") for kept, bound in sketches])
    shared = _overlaps([kept for kept, _ in sketches])
    return shared / (counts + counts.T - shared)


def unit_hashes(text: str) -> NDArray[np.uint64]:
    """Returns a hash of every word and CJK character of the text in order, in lower case."""
    codes = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[codes]
    begins = kinds == _CJK
    begins[:1] |= kinds[:1] == _WORD
    begins[1:] |= (kinds[1:] == _WORD) & (kinds[:-1] != _WORD)
    inside = kinds > 0
    codes, starts = codes[inside], np.flatnonzero(begins[inside])
    if not len(starts):
        return np.zeros(0, np.uint64)
    places = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    return mix(np.add.reduceat(codes * _PLACES[places % len(_PLACES)], starts))


def _sketch(units: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], np.uint64]:
    """Returns the different n-grams up to a bound, in ascending order, and the bound."""
    units = np.pad(units, (0, max(0, SIZE - len(units))))
    count = len(units) - SIZE + 1
    grams = np.zeros(count, np.uint64)
    for place in range(SIZE):
        grams = mix(grams ^ units[place : place + count])
    bound = _LARGEST
    if count > MOST:
        bound = np.partition(grams, MOST - 1)[MOST - 1]
        grams = grams[grams <= bound]
    return np.unique(grams), bound


def _overlaps(sets: Sequence[NDArray[np.uint64]]) -> NDArray[np.float64]:
    """Returns how many numbers each pair of sets shares [N, N]."""
    owners = np.repeat(np.arange(len(sets)), [len(numbers) for numbers in sets])
    different, columns = np.unique(np.concatenate(sets), return_inverse=True)
    table = np.zeros((len(sets), len(different)), np.float32)
    table[owners, columns] = 1
    return (table @ table.T).astype(np.float64)  # whole numbers below 2**24: exact


@cache
def _kinds() -> NDArray[np.uint8]:
    """Returns what each code point is: part of a word, a unit of its own, or neither (0)."""
    kinds = np.zeros(0x110000, np.uint8)
    for run in re.finditer(r"\w+", "".join(map(chr, range(len(kinds))))):
        kinds[run.start() : run.end()] = _WORD
    kinds[0x3400:0xA000] = _CJK
    return kinds
