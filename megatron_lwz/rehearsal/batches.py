"""Batches of the sizes that a run would have: equally long sequences, their content without meaning."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from megatron_lwz.config import Config
from megatron_lwz.data.preferences.batches import PairBatch
from megatron_lwz.data.supervised import SupervisedBatch
from megatron_lwz.distributed import groups
from megatron_lwz.training.batching import make_micro_batches, segment_align
from megatron_lwz.types import MicroBatch, SequenceBatch


@dataclass(frozen=True)
class Size:
    """How large a step is."""

    length: int | None = None
    """Tokens of a sequence; None takes half a pack."""
    micro_batches: int = 2
    """Packs on every data-parallel rank."""
    fill: bool = False
    """Whether a shorter sequence fills what such sequences leave of a pack, up to the cap."""

    def times(self, updates: int) -> Size:
        """Returns the size of so many updates."""
        return replace(self, micro_batches=self.micro_batches * updates)


def sequences(config: Config, size: Size, *, even: bool = False, prompt: int | None = None) -> SequenceBatch:
    """Returns sequences that fill the packs of every data-parallel rank, in the same way.

    `prompt` tokens of each get no label (None: as many as the config allows, at most a quarter; negative: all but so
    many). `even`: an even number in each pack (pairs).
    """
    cap, align = config.training.tokens_per_micro_batch, segment_align(config)
    inputs = (cap // 2 if size.length is None else min(size.length - 1, cap)) // align * align
    if even:
        inputs = min(inputs, cap // 2 // align * align)
    per_pack = cap // inputs // 2 * 2 if even else cap // inputs
    packs = size.micro_batches * groups.data_size()
    counts = [inputs + 1] * (per_pack * packs)  # the last token is a label only
    rest = (cap - per_pack * inputs) // (2 if even else 1) // align * align
    if size.fill and rest > 1:
        counts += [rest + 1] * ((2 if even else 1) * packs)
    lengths = torch.tensor(counts)
    if prompt is None:
        prompts = (lengths // 4).clamp(1, config.data.max_prompt_tokens)
    else:
        prompts = torch.full_like(lengths, prompt) if prompt >= 0 else lengths + prompt
    total = int(lengths.sum())
    return SequenceBatch(
        tokens=torch.randint(0, config.architecture().vocab_size, (total,)),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=prompts,
        behaviour_logprobs=torch.full((total,), -1.0),
        advantages=torch.linspace(-1.0, 1.0, len(counts)),
        weights=torch.ones(len(counts)),
    )


def first_micro_batch(batch: SequenceBatch, config: Config) -> MicroBatch:
    """Returns one of this rank's micro-batches; all have the same length."""
    return make_micro_batches(batch, config, torch.ones(len(batch.tokens)))[0]


def supervised(config: Config, size: Size, *, prompt: int | None) -> SupervisedBatch:
    """Returns a batch of next-token prediction."""
    batch = sequences(config, size, prompt=prompt)
    weights = torch.ones(len(batch.tokens))
    return SupervisedBatch(batch, weights, int(weights.sum()), _names(len(batch)))


def pairs(config: Config, size: Size) -> PairBatch:
    """Returns preference pairs; only the mark after each text is a label."""
    batch = sequences(config, size, even=True, prompt=-1)
    count = len(batch) // 2
    return PairBatch(batch, torch.ones(len(batch.tokens)), count, _names(count), torch.ones(count))


def policy_pairs(config: Config, size: Size) -> SupervisedBatch:
    """Returns preference pairs whose replies are the labels."""
    batch = sequences(config, size, even=True)
    count = len(batch) // 2
    return SupervisedBatch(batch, torch.ones(len(batch.tokens)), count, _names(count))


def _names(count: int) -> list[str]:
    return [str(index) for index in range(count)]
