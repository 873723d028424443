"""Sequences being decoded, the shape of their keys and values, and prompts cached for sharing.

Shape legend: L layers, G key-value heads (query groups), D head dimension, R rows, N tokens, Q query heads per key-value
head, T sequences of a step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_lwz.kernels.decode_attention import PAGE, as_page, of_page

Attend = Callable[[int, Tensor], Tensor]
"""(layer, queries, key and value of each token before RoPE [T, G, Q + 2, D]) → [T, G, Q, D]"""
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


@dataclass(eq=False)
class Prefix:
    """A prompt's keys and values and its next-token logits [V]; `done` counts its computed tokens.

    They lie in `cached` [L, G, 2, N, D] while they are computed, later in `pages` (see `as_page`) if a row asked for
    them.
    """

    tokens: tuple[int, ...]
    cached: Tensor
    done: int = 0
    logits: Tensor | None = None
    pages: tuple[Tensor, ...] = ()

    def first(self, count: int) -> Tensor:
        """Returns the keys and values of the first `count` computed tokens, [L, G, 2, count, D]."""
        whole = torch.cat([of_page(page) for page in self.pages], 3) if self.pages else self.cached
        return whole[..., :count, :]

    def in_pages(self) -> tuple[Tensor, ...]:
        """Moves a computed prompt into pages, the last of which may have room left. Returns them."""
        if not self.pages:
            self.pages = tuple(map(as_page, self.cached.split(PAGE, 3)))
            self.cached = self.cached[..., :0, :].clone()
        return self.pages


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
            entry.cached[..., :shared, :] = donor.first(shared)
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
