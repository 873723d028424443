"""The micro-batches of this rank in a step: packed under the token cap, balanced over data-parallel ranks by FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from megatron_lwz.config import Config
from megatron_lwz.config.flops import sequence_flops
from megatron_lwz.data.packing import build_micro_batch, pack_units, plan_micro_batches
from megatron_lwz.distributed import groups
from megatron_lwz.types import MicroBatch, SequenceBatch


def make_micro_batches(batch: SequenceBatch, config: Config, token_weights: Tensor) -> list[MicroBatch]:
    """Returns the micro-batches of this rank; every rank gets the same number.

    `token_weights` [sum of lengths] fp32 holds the loss weights of the tokens of `batch`. Raises ConfigError for a
    sequence longer than `training.tokens_per_micro_batch`.
    """
    arch = config.architecture()
    plan = plan_micro_batches(
        [length - 1 for length in batch.lengths()],  # the last token is a label only
        data_size=groups.data_size(),
        token_cap=config.training.tokens_per_micro_batch,
        multiple_of=_multiple(config),
        align=segment_align(config),
        cost=lambda length: sequence_flops(arch, length),
    )
    return _build(batch, plan[groups.data_rank()], config, token_weights)


def make_pair_batches(batch: SequenceBatch, config: Config, token_weights: Tensor) -> list[MicroBatch]:
    """Works like `make_micro_batches`, but keeps sequences 2p and 2p + 1 in one micro-batch.

    The caller must leave out pairs that do not fit into `training.tokens_per_micro_batch` (`pair_size`).
    """
    arch, lengths = config.architecture(), [length - 1 for length in batch.lengths()]
    pairs = list(zip(lengths[0::2], lengths[1::2], strict=True))
    plan = pack_units(
        [pair_size(pair, config) for pair in pairs],
        [sum(sequence_flops(arch, length) for length in pair) for pair in pairs],
        data_size=groups.data_size(),
        token_cap=config.training.tokens_per_micro_batch,
        multiple_of=_multiple(config),
    )
    sequences = [
        [sequence for pair in pack for sequence in (2 * pair, 2 * pair + 1)] for pack in plan[groups.data_rank()]
    ]
    return _build(batch, sequences, config, token_weights)


def pair_size(inputs: tuple[int, int], config: Config) -> int:
    """Returns the number of tokens that a pair takes in a micro-batch, including the padding of its segments."""
    align = segment_align(config)
    return sum(-(-length // align) * align for length in inputs)


def segment_align(config: Config) -> int:
    """Returns the number of which every segment's length is a multiple."""
    return 2 * config.parallel.context if config.parallel.context > 1 else 1


def _multiple(config: Config) -> int:
    return config.parallel.pipeline if config.parallel.virtual_pipeline else 1


def _build(
    batch: SequenceBatch, packs: Sequence[Sequence[int]], config: Config, token_weights: Tensor
) -> list[MicroBatch]:
    parallel = config.parallel
    return [
        build_micro_batch(
            batch,
            indices,
            tensor_size=parallel.tensor,
            context_size=parallel.context,
            context_rank=groups.context_rank(),
            sequence_parallel=parallel.sequence and parallel.tensor > 1,
            token_weights=token_weights,
        )
        for indices in packs
    ]
