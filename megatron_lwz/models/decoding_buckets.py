"""Keys and values of running sequences in rows of buckets with equal capacity, for torch's attention, on any device.

Shape legend: L layers, G key-value heads (query groups), D head dimension, R rows of a bucket, N tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lwz.models.decoding_cache import Attend, CachedSequence, CacheShape, Prefix
from megatron_lwz.models.decoding_forward import DecodingForward

SMALLEST_CAPACITY = 512
"""Tokens per row of the first bucket. Rows of each further bucket are twice as long."""
SEEN_STEP = 256
"""Attention sees so many tokens of a bucket more at a time, masked beyond a row's end: shapes last for so many steps."""


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


class BucketRows:
    """All rows. Memory grows with the sequences: a row that outgrows its bucket moves to one twice as long."""

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._buckets: list[Bucket] = []

    def buckets(self) -> list[Bucket]:
        """Returns the buckets in use, shortest rows first."""
        return [bucket for bucket in self._buckets if bucket.sequences]

    def add(self, sequence: CachedSequence, prefix: Prefix) -> None:
        """Gives the sequence a row with room for one more token than its computed prompt has."""
        self._put(sequence, prefix.first(prefix.done))

    def _put(self, sequence: CachedSequence, cached: Tensor) -> None:
        level = 0
        while SMALLEST_CAPACITY << level <= cached.shape[3]:
            level += 1
        while len(self._buckets) <= level:
            self._buckets.append(Bucket(self._shape, SMALLEST_CAPACITY << len(self._buckets)))
        self._buckets[level].add(sequence, cached)

    def remove(self, sequence: CachedSequence) -> None:
        """Frees the sequence's row. Raises StopIteration if it has none."""
        next(bucket for bucket in self._buckets if sequence in bucket.sequences).remove(sequence)

    def grow(self) -> bool:
        """Moves full rows to the next bucket. Returns whether there were any."""
        full = [(b, s) for b in self._buckets for s in b.sequences if s.length == b.capacity]
        for bucket, sequence in full:
            self._put(sequence, bucket.remove(sequence))
        return bool(full)

    def attention(self, forward: DecodingForward) -> BucketAttention:
        """Returns the attention of the next steps, while no row is added, removed or moved."""
        return BucketAttention(self.buckets(), forward)


class BucketAttention:
    """The newest token of every sequence attends to its row; `sequences` are in row order."""

    def __init__(self, buckets: list[Bucket], forward: DecodingForward) -> None:
        self.sequences = [sequence for bucket in buckets for sequence in bucket.sequences]
        self._buckets, self._forward = buckets, forward
        self._device = forward.cache_shape.device
        self._rows = [torch.arange(len(bucket.sequences), device=self._device) for bucket in buckets]
        self._seen: tuple[int, ...] = ()

    def advance(self) -> tuple[int, ...]:
        """Makes room for the sequences' next tokens. Returns what the shapes of the step depend on."""
        longest = [1 + max(sequence.length for sequence in bucket.sequences) for bucket in self._buckets]
        self._seen = tuple(
            min(bucket.capacity, -(-length // SEEN_STEP) * SEEN_STEP)
            for bucket, length in zip(self._buckets, longest, strict=True)
        )
        return self._seen

    def at(self, positions: Tensor) -> Attend:
        """Returns the attention of one step, whose tokens stand at `positions`. It looks at no value on the host."""
        sizes = [len(rows) for rows in self._rows]
        places = positions.split(sizes)
        masks = list(map(self._mask, places, self._seen))
        turn = self._forward.rotation.at(positions)

        def attend(layer: int, mixed: Tensor) -> Tensor:
            turn(mixed)
            outputs = []
            for bucket, rows, part, place, length, mask in zip(
                self._buckets, self._rows, mixed.split(sizes), places, self._seen, masks, strict=True
            ):
                store = bucket.store[layer]
                store[rows, :, :, place] = part[:, :, -2:]
                seen = store[: len(rows), :, :, :length]
                outputs.append(
                    F.scaled_dot_product_attention(
                        part[:, :, :-2], seen[:, :, 0], seen[:, :, 1], attn_mask=mask, scale=self._forward.scale
                    )
                )
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        return attend

    def _mask(self, positions: Tensor, length: int) -> Tensor:
        """Returns what torch's attention adds to the scores of a bucket [R, 1, 1, N]."""
        hidden = torch.arange(length, device=self._device) > positions[:, None]
        nothing = torch.zeros(hidden.shape, device=self._device, dtype=self._forward.cache_shape.dtype)
        return nothing.masked_fill_(hidden, -torch.inf)[:, None, None]
