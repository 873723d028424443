"""Finds exact and near copies of earlier requests, one request at a time, by MinHash values in bands as for corpora.

Each kept request takes memory for 480 bytes of values and 20 keys. The result is the same in every process, so the same
files always give the same rows.
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
    """Finds for each request whether an earlier one is a copy of it."""

    def __init__(self, *, threshold: float = 0.8, shingle: int = 3) -> None:
        """Takes the estimated Jaccard similarity `threshold` from which two requests are near copies.

        `shingle` is the n-gram size in words (CJK: characters). Shorter requests are compared exactly only.
        """
        self._threshold = threshold
        self._minhash = MinHash(shingle, minimum=1)
        self._exact: set[bytes] = set()
        self._kept: list[NDArray[np.uint32]] = []
        self._buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)

    def add(self, text: str) -> Copy | None:
        """Adds a request. Returns "exact" or "near" if an earlier one is a copy (ignoring case, width and spaces)."""
        plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        plain = plain.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be encoded
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
            return "near"  # the earlier request represents it, so its own values are not kept
        for key in keys:
            self._buckets[key].append(len(self._kept))
        self._kept.append(values)
        return None
