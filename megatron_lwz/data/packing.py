"""Packs a step's sequences into micro-batches: the schedule (a pure function) and the tensors of one pack.

A pack is one row of segments. Each sequence is one segment: all tokens but the last are inputs, all tokens but the
first are labels. Each segment is padded for the context-parallel split. A segment of padding at the end makes the row's
length divisible for sequence parallelism.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import torch

from megatron_lwz.distributed.context_parallel import shard_indices
from megatron_lwz.errors import ConfigError
from megatron_lwz.types import IGNORED_LABEL, MicroBatch, SequenceBatch


def plan_micro_batches(
    lengths: Sequence[int],
    *,
    data_size: int,
    token_cap: int,
    multiple_of: int = 1,
    align: int = 1,
    cost: Callable[[int], float],
) -> list[list[list[int]]]:
    """Returns the indices of the sequences in each micro-batch: [data rank][micro-batch][sequence], each index once.

    All data ranks get equally many micro-batches, a multiple of `multiple_of` (pipeline size, interleaved schedule).
    No micro-batch holds more than `token_cap` tokens, with each segment padded to a multiple of `align`.
    `cost(length)` balances first the micro-batches, then the ranks. The ranks' total costs differ by at most the cost
    of the most expensive micro-batch.
    A micro-batch is empty (a pack of padding) only when there are fewer sequences than micro-batches.
    Raises ConfigError for a sequence longer than `token_cap`.
    """
    sizes = [math.ceil(length / align) * align for length in lengths]
    if sizes and max(sizes) > token_cap:
        raise ConfigError(
            "training.tokens_per_micro_batch",
            token_cap,
            f"a sequence takes {max(sizes)} tokens: raise it to at least that",
        )
    costs = [cost(length) for length in lengths]
    return pack_units(sizes, costs, data_size=data_size, token_cap=token_cap, multiple_of=multiple_of)


def pack_units(
    sizes: Sequence[int], costs: Sequence[float], *, data_size: int, token_cap: int, multiple_of: int = 1
) -> list[list[list[int]]]:
    """Does the packing of `plan_micro_batches` for any kind of unit. `sizes` are in tokens, none over `token_cap`."""
    step = data_size * multiple_of
    count = max(1, math.ceil(sum(sizes) / (token_cap * step))) * step
    while (packs := _fill(sizes, costs, count, token_cap)) is None:
        count += step
    return _deal(packs, costs, data_size)


def _fill(sizes: Sequence[int], costs: Sequence[float], count: int, cap: int) -> list[list[int]] | None:
    """Puts each sequence, most expensive first, into the cheapest of `count` packs that has room for it.

    Returns None when a sequence finds no room.
    """
    packs: list[list[int]] = [[] for _ in range(count)]
    room = [cap] * count
    cheapest = [(0.0, pack) for pack in range(count)]
    for index in sorted(range(len(sizes)), key=lambda i: (-costs[i], i)):
        passed = []
        while cheapest and room[cheapest[0][1]] < sizes[index]:
            passed.append(heapq.heappop(cheapest))
        if not cheapest:
            return None
        total, pack = heapq.heappop(cheapest)
        packs[pack].append(index)
        room[pack] -= sizes[index]
        for entry in (*passed, (total + costs[index], pack)):
            heapq.heappush(cheapest, entry)
    return [sorted(pack) for pack in packs]


def _deal(packs: list[list[int]], costs: Sequence[float], data_size: int) -> list[list[list[int]]]:
    """Distributes the packs in rounds of one pack per rank, most expensive packs first.

    In each round, the rank with the least work takes the most expensive pack.
    """
    price = [sum(costs[i] for i in pack) for pack in packs]
    order = sorted(range(len(packs)), key=lambda p: (-price[p], p))
    ranks: list[list[list[int]]] = [[] for _ in range(data_size)]
    load = [0.0] * data_size
    for start in range(0, len(order), data_size):
        idle_first = sorted(range(data_size), key=lambda r: (load[r], r))
        for rank, pack in zip(idle_first, order[start : start + data_size], strict=True):
            ranks[rank].append(packs[pack])
            load[rank] += price[pack]
    return ranks


def build_micro_batch(
    batch: SequenceBatch,
    indices: Sequence[int],
    *,
    tensor_size: int,
    context_size: int,
    context_rank: int,
    sequence_parallel: bool,
    token_weights: torch.Tensor,
) -> MicroBatch:
    """Packs the sequences `indices` and takes the zigzag share of one context-parallel rank.

    Labels are the response tokens (those from `prompt_lengths` on) whose weight is above 0. Each is a label on exactly
    one context-parallel rank. `token_weights` [sum of lengths] fp32 are the loss weights of the tokens as labels. Every
    rank's share has at least one token; with `sequence_parallel` its length is a multiple of `tensor_size`.
    """
    source, ids, positions, lengths = [], [], [], []
    for i in indices:
        start, end = int(batch.offsets[i]), int(batch.offsets[i + 1])
        inputs = end - start - 1
        padded = _round_up(inputs, 2 * context_size if context_size > 1 else 1)
        source += [torch.arange(start, end - 1), torch.full((padded - inputs,), -1)]
        ids += [torch.full((inputs,), i), torch.full((padded - inputs,), -1)]
        positions.append(torch.arange(padded))
        lengths.append(padded)
    unit = tensor_size if sequence_parallel else 1
    unit = context_size * math.lcm(2, unit) if context_size > 1 else unit
    filler = _round_up(max(sum(lengths), 1), unit) - sum(lengths)
    source.append(torch.full((filler,), -1))
    ids.append(torch.full((filler,), -1))
    positions.append(torch.arange(filler))
    lengths = [length for length in (*lengths, filler) if length]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)

    share = shard_indices(cu_seqlens, context_size, context_rank)
    inputs_at, sequence_ids = torch.cat(source)[share], torch.cat(ids)[share]
    label_at = inputs_at + 1
    within = label_at - batch.offsets[sequence_ids.clamp(min=0)]
    answered = (inputs_at >= 0) & (within >= batch.prompt_lengths[sequence_ids.clamp(min=0)])
    answered &= token_weights[label_at.clamp(max=len(token_weights) - 1)] > 0
    label_at = label_at.where(answered, torch.tensor(-1))

    def of_labels(values: torch.Tensor, otherwise: float) -> torch.Tensor:
        return values[label_at.clamp(min=0)].where(answered, values.new_full((), otherwise))

    return MicroBatch(
        tokens=batch.tokens[inputs_at.clamp(min=0)].where(inputs_at >= 0, batch.tokens.new_zeros(())),
        labels=of_labels(batch.tokens, IGNORED_LABEL),
        positions=torch.cat(positions)[share],
        cu_seqlens=cu_seqlens.int(),
        max_seqlen=max(lengths),
        sequence_ids=sequence_ids,
        source=label_at,
        behaviour_logprobs=of_labels(batch.behaviour_logprobs, 0.0),
        advantages=batch.advantages[sequence_ids.clamp(min=0)].where(answered, torch.zeros(())),
        weights=of_labels(token_weights, 0.0),
    )


def unpack(values: torch.Tensor, micro_batch: MicroBatch, out: torch.Tensor) -> None:
    """Writes `values` [T] of a micro-batch's labels to `out` [sum of lengths], at the labels' places in the batch."""
    labelled = micro_batch.source >= 0
    out[micro_batch.source[labelled].to(out.device)] = values[labelled.to(values.device)].to(out)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
