"""Which tokens a context-parallel rank holds: pure index arithmetic.

Every segment of a pack is cut into 2·CP equal chunks; rank r takes chunks r and 2·CP − 1 − r. Under a causal mask an
early chunk is cheap and a late one expensive, so each rank gets the same work (the "zigzag" split of Megatron-Core).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor


def chunks(cu_seqlens: Tensor, cp_size: int, cp_rank: int) -> Iterator[tuple[int, int, int]]:
    """Yields (segment start, chunk start, chunk end) of this rank's chunks in local order.

    All three are indices into the full pack. `cu_seqlens` [S + 1] holds the start of every segment and the end of the
    last. Raises ValueError when a length is not a multiple of 2·CP (CP > 1).
    """
    starts = cu_seqlens.tolist()
    for start, end in pairwise(starts):
        if start == end:
            continue
        if cp_size == 1:
            yield start, start, end
            continue
        size, rest = divmod(end - start, 2 * cp_size)
        if rest:
            raise ValueError(f"segment of {end - start} tokens: must be a multiple of 2·CP = {2 * cp_size}")
        for chunk in (cp_rank, 2 * cp_size - 1 - cp_rank):
            yield start, start + chunk * size, start + (chunk + 1) * size


def shard_indices(cu_seqlens: Tensor, cp_size: int, cp_rank: int) -> Tensor:
    """Returns [T / CP] int64: the indices in the full pack of the tokens that rank `cp_rank` holds, in local order."""
    pieces = [torch.arange(start, end) for _, start, end in chunks(cu_seqlens, cp_size, cp_rank)]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)


def gathered_order(cu_seqlens: Tensor, cp_size: int) -> Tensor:
    """Returns [T] int64 such that `gathered[gathered_order]` is the full pack.

    `gathered` is the concatenation of all shards in rank order.
    """
    return torch.cat([shard_indices(cu_seqlens, cp_size, rank) for rank in range(cp_size)]).argsort()
