"""Fingerprints for comparing documents: a hash of the text, and MinHash values of its n-grams (Broder, 1997)."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from megatron_lwz.data.hashing import mix
from megatron_lwz.data.text.near_duplicates import UNIT

BANDS, ROWS = 20, 6
"""Bands, and values per band. Two documents are compared when all values of one band agree.

This finds 99.8 % of the pairs with similarity 0.8.
"""
VALUES = BANDS * ROWS

_CHUNK = 4096
_FACTORS = mix(np.arange(VALUES, dtype=np.uint64)) | np.uint64(1)
_OFFSETS = mix(np.arange(VALUES, 2 * VALUES, dtype=np.uint64))
_NO_SHINGLES = np.full(VALUES, 0xFFFFFFFF, np.uint32)
_MOST_WORDS = 1_000_000


def text_hash(text: str) -> NDArray[np.uint64]:
    """Returns a hash [2] that is equal for texts that differ only in white space."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
    return np.frombuffer(digest, "<u8")


class MinHash:
    """Computes the MinHash values of documents. Caches the hashes of words."""

    def __init__(self, shingle: int, minimum: int) -> None:
        """Takes the n-gram size `shingle` in words (CJK: characters).

        Documents of fewer than `minimum` n-grams get no values.
        """
        self._shingle = shingle
        self._minimum = minimum
        self._words = _Words()

    def __call__(self, text: str) -> NDArray[np.uint32]:
        """Returns MinHash values [VALUES]. All bits are set if the text is too short to be compared.

        The share of equal values of two documents estimates their Jaccard similarity.
        """
        units = UNIT.findall(text.lower())
        count = len(units) - self._shingle + 1
        if count < self._minimum:
            return _NO_SHINGLES
        if len(self._words) > _MOST_WORDS:
            self._words.clear()
        words = np.fromiter(map(self._words.__getitem__, units), np.uint64, len(units))
        shingles = np.zeros(count, np.uint64)
        for i in range(self._shingle):
            shingles = mix(shingles ^ words[i : i + count])
        smallest = _NO_SHINGLES
        for start in range(0, count, _CHUNK):
            hashed = shingles[start : start + _CHUNK] * _FACTORS[:, None] + _OFFSETS[:, None]
            smallest = np.minimum(smallest, (hashed.min(axis=1) >> np.uint64(32)).astype(np.uint32))
        return smallest


class _Words(dict[str, int]):
    """Maps a word to a 64-bit hash that is the same in every process (Python's own hash is not)."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        value = self[word] = int.from_bytes(digest, "little")
        return value
