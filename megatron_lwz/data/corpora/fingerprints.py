"""What is compared of a document: a hash of its text, and MinHash values of its n-grams (Broder, 1997)."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from megatron_lwz.data.hashing import mix
from megatron_lwz.data.text.near_duplicates import UNIT

BANDS, ROWS = 20, 6
"""Two documents are compared when all values of one band agree. Of pairs with similarity 0.8 that finds 99.8 %."""
VALUES = BANDS * ROWS

_CHUNK = 4096
_FACTORS = mix(np.arange(VALUES, dtype=np.uint64)) | np.uint64(1)
_OFFSETS = mix(np.arange(VALUES, 2 * VALUES, dtype=np.uint64))
_NO_SHINGLES = np.full(VALUES, 0xFFFFFFFF, np.uint32)
_MOST_WORDS = 1_000_000


def text_hash(text: str) -> NDArray[np.uint64]:
    """[2] numbers, equal for equal texts up to white space."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
    return np.frombuffer(digest, "<u8")


class MinHash:
    """MinHash values of documents; remembers the words it has seen."""

    def __init__(self, shingle: int, minimum: int) -> None:
        """`shingle`: n-gram size in words (CJK: characters); documents of fewer than `minimum` n-grams get no values."""
        self._shingle = shingle
        self._minimum = minimum
        self._words = _Words()

    def __call__(self, text: str) -> NDArray[np.uint32]:
        """[VALUES]: the share of equal values estimates the Jaccard similarity. All bits set: not to be compared."""
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
    """Word → 64-bit hash, the same in every process (Python's own is not)."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        value = self[word] = int.from_bytes(digest, "little")
        return value
