"""Keys and values of running sequences, in rows of buckets with equal capacity, and prompts cached for sharing.

Shape legend: L layers, G key-value heads (query groups), D head dimension, R rows of a bucket, N tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SMALLEST_CAPACITY = 512
"""Tokens per row of the first bucket. Rows of each further bucket are twice as long."""
SHORTEST_SHARED = 16
"""Common prefixes with fewer tokens are not copied: computing them is cheap."""


@dataclass(eq=False)
class CachedSequence:
    """One sequence being decoded. Sampling noise is a function of `seed` and the absolute position alone.

    `temperature` 0 is greedy. `length` counts the tokens whose keys and values are cached; `last_token` is the next
    input.
    """

    prompt: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    length: int = 0
    last_token: int = -1


@dataclass(frozen=True)
class CacheShape:
    """Size and type of one token's keys and values: layers, key-value heads, head dimension, dtype, device."""

    layers: int
    groups: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    def zeros(self, *, rows: int | None = None, length: int) -> Tensor:
        """Returns zeros [L, R, G, 2, N, D], or [L, G, 2, N, D] for one sequence.

        Zeros, because masked values must be finite.
        """
        row = () if rows is None else (rows,)
        shape = (self.layers, *row, self.groups, 2, length, self.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


class Bucket:
    """Sequences whose rows hold up to `capacity` tokens.

    Used rows lie together at the front, so that attention works on plain views.
    """

    def __init__(self, shape: CacheShape, capacity: int) -> None:
        self.capacity = capacity
        self.sequences: list[CachedSequence] = []
        self._shape = shape
        self.store = shape.zeros(rows=0, length=capacity)
        """[L, R, G, 2, capacity, D]; grows by doubling R."""

    def add(self, sequence: CachedSequence, cached: Tensor) -> None:
        """Copies `cached` [L, G, 2, N, D] into a new row."""
        row = len(self.sequences)
        if row == self.store.shape[1]:
            grown = self._shape.zeros(rows=max(1, 2 * row), length=self.capacity)
            grown[:, :row] = self.store
            self.store = grown
        self.store[:, row, :, :, : cached.shape[3]] = cached
        self.sequences.append(sequence)

    def remove(self, sequence: CachedSequence) -> Tensor:
        """Removes the row and moves the last row into its place. Returns the cached values, [L, G, 2, length, D]."""
        row, last = self.sequences.index(sequence), self.sequences.pop()
        cached = self.store[:, row, :, :, : sequence.length]
        if last is not sequence:
            cached = cached.clone()
            self.store[:, row, :, :, : last.length] = self.store[:, len(self.sequences), :, :, : last.length]
            self.sequences[row] = last
        if not self.sequences and self.capacity > SMALLEST_CAPACITY:
            self.store = self._shape.zeros(rows=0, length=self.capacity)
        return cached


class RowCache:
    """All rows. Memory grows with the sequences: a row that outgrows its bucket moves to one twice as long."""

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._buckets: list[Bucket] = []

    def buckets(self) -> list[Bucket]:
        """Returns the buckets in use, shortest rows first."""
        return [bucket for bucket in self._buckets if bucket.sequences]

    def add(self, sequence: CachedSequence, cached: Tensor) -> None:
        """Gives the sequence a row with room for one more token than `cached` [L, G, 2, N, D] has."""
        level = 0
        while SMALLEST_CAPACITY << level <= cached.shape[3]:
            level += 1
        while len(self._buckets) <= level:
            self._buckets.append(Bucket(self._shape, SMALLEST_CAPACITY << len(self._buckets)))
        self._buckets[level].add(sequence, cached)

    def remove(self, sequence: CachedSequence) -> None:
        """Frees the sequence's row. Raises StopIteration if it has none."""
        next(bucket for bucket in self._buckets if sequence in bucket.sequences).remove(sequence)

    def move_grown(self) -> bool:
        """Moves full rows to the next bucket. Returns whether there were any."""
        full = [(b, s) for b in self._buckets for s in b.sequences if s.length == b.capacity]
        for bucket, sequence in full:
            self.add(sequence, bucket.remove(sequence))
        return bool(full)


@dataclass(eq=False)
class Prefix:
    """A prompt's keys and values [L, G, 2, N, D] and next-token logits [V]; `done` counts its computed tokens."""

    tokens: tuple[int, ...]
    cached: Tensor
    done: int = 0
    logits: Tensor | None = None


class PrefixCache:
    """Prompts computed once for all samples of a group.

    Beyond `max_tokens` the least recently used ones are dropped.
    """

    def __init__(self, shape: CacheShape, *, max_tokens: int) -> None:
        self._shape = shape
        self._max_tokens = max_tokens
        self._entries: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def get(self, tokens: tuple[int, ...]) -> Prefix:
        """Returns the prompt's entry.

        A new entry starts from the longest prefix that it shares with a finished entry.
        """
        if tokens in self._entries:
            self._entries.move_to_end(tokens)
            return self._entries[tokens]
        entry = Prefix(tokens, self._shape.zeros(length=len(tokens)))
        donor, shared = self._closest(tokens)
        if donor is not None:
            entry.cached[..., :shared, :] = donor.cached[..., :shared, :]
            entry.done = shared
        self._entries[tokens] = entry
        self._trim()
        return entry

    def clear(self) -> None:
        """Drops all entries, because the weights have changed."""
        self._entries.clear()

    def _closest(self, tokens: tuple[int, ...]) -> tuple[Prefix | None, int]:
        wanted = np.asarray(tokens[:-1])  # the last token is always computed: its logits are needed
        best, longest = None, SHORTEST_SHARED - 1
        for entry in self._entries.values():
            both = min(len(wanted), entry.done)
            if both > longest:
                differs = np.flatnonzero(wanted[:both] != np.asarray(entry.tokens[:both]))
                shared = int(differs[0]) if differs.size else both
                if shared > longest:
                    best, longest = entry, shared
        return best, longest

    def _trim(self) -> None:
        held = sum(len(tokens) for tokens in self._entries)
        while held > self._max_tokens and len(self._entries) > 1:
            tokens, _ = self._entries.popitem(last=False)
            held -= len(tokens)
