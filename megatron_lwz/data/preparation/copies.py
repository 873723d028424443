"""Requests that were seen before, exactly or nearly: MinHash values in bands, as for corpora, one request at a time.

Memory per request kept: 480 bytes of values and 20 keys. Nothing depends on the process, so the same files give the same
rows again.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron_lwz.data.corpora.fingerprints import BANDS, ROWS, MinHash

Copy = Literal["exact", "near"]


class CopyFinder:
    """Says of each request whether one before it was the same."""

    def __init__(self, *, threshold: float = 0.8, shingle: int = 3) -> None:
        """`threshold`: Jaccard similarity of word (CJK: character) n-grams, as the values estimate it, of near copies.

        Requests shorter than one n-gram are compared exactly only.
        """
        self._threshold = threshold
        self._minhash = MinHash(shingle, minimum=1)
        self._exact: set[bytes] = set()
        self._kept: list[NDArray[np.uint32]] = []
        self._buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)

    def add(self, text: str) -> Copy | None:
        """Adds a request; "exact" or "near" when an earlier one is its like (case, width and spaces aside)."""
        plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        plain = plain.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair has no hash
        digest = hashlib.blake2b(plain.encode("utf-8"), digest_size=16).digest()
        if digest in self._exact:
            return "exact"
        self._exact.add(digest)
        values = self._minhash(plain)
        if (values == 0xFFFFFFFF).all():
            return None
        keys = [(band, row.tobytes()) for band, row in enumerate(values.reshape(BANDS, ROWS))]
        candidates = {earlier for key in keys for earlier in self._buckets.get(key, ())}
        if any((values == self._kept[earlier]).mean() >= self._threshold for earlier in candidates):
            return "near"  # what it resembles stands for it, so its own values are not kept
        for key in keys:
            self._buckets[key].append(len(self._kept))
        self._kept.append(values)
        return None
