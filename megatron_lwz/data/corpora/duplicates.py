"""Finds copies among all documents: exact ones by hash, near ones by locality-sensitive hashing of MinHash values."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from megatron_lwz.data.corpora.fingerprints import BANDS, ROWS
from megatron_lwz.data.hashing import mix

_COMPARED_AT_ONCE = 1 << 18

SPLIT_RULE = (
    "a document is held back when the hash of its text and the seed falls below the share; "
    "copies and near copies take the side of the first one"
)


def first_copies(text_hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Maps hashes [n, 2] to the index [n] of the first document with the same text (its own if it is the first)."""
    rows = np.ascontiguousarray(text_hashes).view([("a", np.uint64), ("b", np.uint64)])[:, 0]
    _, first, which = np.unique(rows, return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


def near_clusters(values: NDArray[np.uint32], threshold: float) -> NDArray[np.int64]:
    """Maps MinHash values [n, VALUES] to the index [n] of the first document of each document's cluster.

    Among the documents that share a band, each is compared with the first and with the previous one. A cluster is a
    connected component: near copies of near copies belong to it.
    """
    leaders = np.arange(len(values))
    comparable = np.flatnonzero((values != 0xFFFFFFFF).any(axis=1))
    for band in range(BANDS):
        keys = np.zeros(len(comparable), np.uint64)
        for column in range(band * ROWS, (band + 1) * ROWS):
            keys = mix(keys ^ values[comparable, column].astype(np.uint64))
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1  # places in `order` that continue a bucket
        starts = np.arange(len(order))
        starts[same] = 0
        firsts = np.maximum.accumulate(starts)[same]
        members = comparable[order]
        for others in (firsts, same - 1):
            _join_alike(leaders, values, members[others], members[same], threshold)
    return np.array([_leader(leaders, i) for i in range(len(leaders))], np.int64)


def _join_alike(
    leaders: NDArray[np.int64],
    values: NDArray[np.uint32],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    threshold: float,
) -> None:
    for start in range(0, len(left), _COMPARED_AT_ONCE):
        a, b = left[start : start + _COMPARED_AT_ONCE], right[start : start + _COMPARED_AT_ONCE]
        alike = (values[a] == values[b]).mean(axis=1) >= threshold
        for i, j in zip(a[alike].tolist(), b[alike].tolist(), strict=True):
            first, second = _leader(leaders, i), _leader(leaders, j)
            leaders[max(first, second)] = min(first, second)


def _leader(leaders: NDArray[np.int64], i: int) -> int:
    while (up := int(leaders[i])) != i:
        leaders[i] = leaders[up]
        i = up
    return i


def held_back(text_hashes: NDArray[np.uint64], leaders: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool]:
    """Returns a mask [n] of the documents held back by SPLIT_RULE.

    The decision depends on text and seed alone, so it does not change when other documents are added or removed.
    """
    key = int.from_bytes(hashlib.blake2b(f"validation/{seed}".encode(), digest_size=8).digest(), "little")
    draw = mix(text_hashes[:, 0] ^ np.uint64(key)).astype(np.float64) / 2.0**64
    return draw[leaders] < share
