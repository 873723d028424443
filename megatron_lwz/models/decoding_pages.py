"""Keys and values of running sequences in pages, for our attention on a CPU (PagedAttention, Kwon et al. 2309.06180).

A sequence holds a list of pages of 128 tokens. The full pages of a prompt are shared by all that continue it, the last one is
copied, and a page is added when the last one is full. So a group's prompt lies in memory once, and nothing is ever moved.

Shape legend: T sequences of a step, P pages of the longest one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_lwz.kernels import decode_attention
from megatron_lwz.kernels.decode_attention import PAGE
from megatron_lwz.models.decoding_cache import Attend, CachedSequence, CacheShape, Prefix
from megatron_lwz.models.decoding_forward import DecodingForward


class PagedRows:
    """The pages of all sequences."""

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._pages: dict[CachedSequence, list[Tensor]] = {}

    def add(self, sequence: CachedSequence, prefix: Prefix) -> None:
        """Lets the sequence continue a computed prompt."""
        *full, last = prefix.in_pages()
        self._pages[sequence] = [*full, last if prefix.done % PAGE == 0 else last.clone()]

    def remove(self, sequence: CachedSequence) -> None:
        """Frees the pages that no other sequence and no cached prompt has. Raises KeyError for an unknown sequence."""
        del self._pages[sequence]

    def grow(self) -> bool:
        """Adds a page to every sequence that has no room for one more token. Returns whether there were any."""
        full = [sequence for sequence, pages in self._pages.items() if sequence.length == PAGE * len(pages)]
        for sequence in full:
            self._pages[sequence].append(self._shape.zeros(length=PAGE).flatten(-2))
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
