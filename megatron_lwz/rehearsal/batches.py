"""Batches of the sizes that a run would have: all sequences equally long, their content without meaning."""

from __future__ import annotations

import torch

from megatron_lwz.config import Config
from megatron_lwz.data.preferences.batches import PairBatch
from megatron_lwz.data.supervised import SupervisedBatch
from megatron_lwz.distributed import groups
from megatron_lwz.training.batching import make_micro_batches, segment_align
from megatron_lwz.types import MicroBatch, SequenceBatch


def sequences(
    config: Config, length: int | None, micro_batches: int, *, even: bool = False, prompt: int | None = None
) -> SequenceBatch:
    """Returns sequences that fill `micro_batches` packs on every data-parallel rank.

    `length` counts the tokens of a sequence; None takes half a pack. `prompt` tokens of it get no label (None: as many
    as the config allows, at most a quarter; negative: all but so many). `even`: an even number in each pack (pairs).
    """
    cap, align = config.training.tokens_per_micro_batch, segment_align(config)
    inputs = (cap // 2 if length is None else min(length - 1, cap)) // align * align
    if even:
        inputs = min(inputs, cap // 2 // align * align)
    per_pack = cap // inputs // 2 * 2 if even else cap // inputs
    count = per_pack * micro_batches * groups.data_size()
    tokens = inputs + 1  # the last one is a label only
    if prompt is None:
        prompt = max(1, min(config.data.max_prompt_tokens, tokens // 4))
    return SequenceBatch(
        tokens=torch.randint(0, config.architecture().vocab_size, (count * tokens,)),
        offsets=torch.arange(count + 1) * tokens,
        prompt_lengths=torch.full((count,), prompt if prompt >= 0 else tokens + prompt),
        behaviour_logprobs=torch.full((count * tokens,), -1.0),
        advantages=torch.linspace(-1.0, 1.0, count),
        weights=torch.ones(count),
    )


def first_micro_batch(batch: SequenceBatch, config: Config) -> MicroBatch:
    """Returns one of this rank's micro-batches; all have the same length."""
    return make_micro_batches(batch, config, torch.ones(len(batch.tokens)))[0]


def supervised(config: Config, length: int | None, micro_batches: int, *, prompt: int | None) -> SupervisedBatch:
    """Returns a batch of next-token prediction."""
    batch = sequences(config, length, micro_batches, prompt=prompt)
    weights = torch.ones(len(batch.tokens))
    return SupervisedBatch(batch, weights, int(weights.sum()), _names(len(batch)))


def pairs(config: Config, length: int | None, micro_batches: int) -> PairBatch:
    """Returns preference pairs; only the mark after each text is a label."""
    batch = sequences(config, length, micro_batches, even=True, prompt=-1)
    count = len(batch) // 2
    return PairBatch(batch, torch.ones(len(batch.tokens)), count, _names(count), torch.ones(count))


def _names(count: int) -> list[str]:
    return [str(index) for index in range(count)]
