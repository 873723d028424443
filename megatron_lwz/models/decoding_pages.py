"""Keys and values of running sequences in pages, for our attention on a CPU (PagedAttention, Kwon et al. 2309.06180).

A sequence holds a list of pages of 128 tokens. The full pages of a prompt are shared by all that continue it, the last one is
copied, and a page is added when the last one is full. So a group's prompt lies in memory once, and nothing is ever moved. Pages
of sequences that have ended are used again, and go back to the system when no sequence is left.

Shape legend: T sequences of a step, P pages of the longest one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_lwz.distributed import huge_pages
from megatron_lwz.kernels import decode_attention
from megatron_lwz.kernels.decode_attention import PAGE
from megatron_lwz.models.decoding_cache import Attend, CachedSequence, CacheShape, Prefix
from megatron_lwz.models.decoding_forward import DecodingForward
from megatron_lwz.units import MIB

_BLOCK = 33 * MIB
"""Least bytes of a block of pages. Above 32 MiB glibc always asks the system for memory of its own, which it gives back when it
is freed. It keeps smaller pieces once it has seen some of their size, so the process would never shrink."""


class PagePool:
    """Memory of pages, taken from the system in blocks, so that the system can back them with huge pages."""

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._free: list[Tensor] = []
        self._taken = 0

    def take(self) -> Tensor:
        """Returns a page [L, G, 2, PAGE · D] of any numbers."""
        if not self._free:
            self._free = self._block()
        self._taken += 1
        return self._free.pop()

    def give(self, pages: list[Tensor]) -> None:
        """Takes pages back. When all are back, their memory is freed."""
        self._free += pages
        self._taken -= len(pages)
        if not self._taken:
            self._free.clear()

    def _block(self) -> list[Tensor]:
        page = self._shape.layers, self._shape.groups, 2, PAGE * self._shape.head_dim
        count = -(-_BLOCK // (math.prod(page) * self._shape.dtype.itemsize))
        return list(huge_pages.prefer(torch.empty(count, *page, dtype=self._shape.dtype)).unbind())


class PagedRows:
    """The pages of all sequences."""

    def __init__(self, shape: CacheShape) -> None:
        self._pool = PagePool(shape)
        self._pages: dict[CachedSequence, list[Tensor]] = {}
        self._shared: dict[CachedSequence, int] = {}
        """Number of each sequence's first pages that belong to a cached prompt."""

    def add(self, sequence: CachedSequence, prefix: Prefix) -> None:
        """Lets the sequence continue a computed prompt."""
        pages = list(prefix.in_pages())
        self._shared[sequence] = prefix.done // PAGE
        if prefix.done % PAGE:
            pages[-1] = self._pool.take().copy_(pages[-1])
        self._pages[sequence] = pages

    def remove(self, sequence: CachedSequence) -> None:
        """Frees the pages that no other sequence and no cached prompt has. Raises KeyError for an unknown sequence."""
        self._pool.give(self._pages.pop(sequence)[self._shared.pop(sequence) :])

    def grow(self) -> bool:
        """Adds a page to every sequence that has no room for one more token. Returns whether there were any."""
        full = [sequence for sequence, pages in self._pages.items() if sequence.length == PAGE * len(pages)]
        for sequence in full:
            self._pages[sequence].append(self._pool.take())
        return bool(full)

    @property
    def count(self) -> int:
        """Number of pages in memory, cached prompts' own not counted."""
        return len({id(page) for pages in self._pages.values() for page in pages})

    def attention(self, forward: DecodingForward) -> PagedAttention:
        """Returns the attention of the next steps, while no sequence is added, removed or grown."""
        return PagedAttention(list(self._pages), list(self._pages.values()), forward)


class PagedAttention:
    """The newest token of every sequence attends to its pages."""

    def __init__(self, sequences: list[CachedSequence], pages: list[list[Tensor]], forward: DecodingForward) -> None:
        self.sequences = sequences
        self._forward = forward
        most = max(map(len, pages))
        addresses = [[page.data_ptr() for page in row] + [0] * (most - len(row)) for row in pages]
        self._table = torch.tensor(addresses, dtype=torch.int64)
        """Addresses of the pages [T, P], 0 behind the last one."""
        self._kept = pages  # the addresses are good as long as the pages live

    def advance(self) -> tuple[int, ...]:
        """Does nothing: `grow` has made room, and shapes stay the same."""
        return ()

    def at(self, positions: Tensor) -> Attend:
        """Returns the attention of one step, whose tokens stand at `positions` [T]."""
        lengths, rotation, scale = positions + 1, self._forward.rotation, self._forward.scale

        def attend(layer: int, mixed: Tensor) -> Tensor:
            return decode_attention.attend(mixed, rotation.cos, rotation.sin, self._table, layer, lengths, scale)

        return attend
