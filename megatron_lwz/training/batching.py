"""This rank's micro-batches of a step: packed under the token cap, balanced over data-parallel ranks by FLOPs."""

from __future__ import annotations

from torch import Tensor

from megatron_lwz.config import Config
from megatron_lwz.config.flops import sequence_flops
from megatron_lwz.data.packing import build_micro_batch, plan_micro_batches
from megatron_lwz.distributed import groups
from megatron_lwz.types import MicroBatch, SequenceBatch


def make_micro_batches(batch: SequenceBatch, config: Config, token_weights: Tensor) -> list[MicroBatch]:
    """The micro-batches of this rank, equally many on every rank.

    `token_weights` [sum of lengths] fp32 are the loss weights of the tokens of `batch`. Raises ConfigError for a
    sequence longer than `training.tokens_per_micro_batch`.
    """
    arch, parallel = config.architecture(), config.parallel
    plan = plan_micro_batches(
        [length - 1 for length in batch.lengths()],  # the last token is a label only
        data_size=groups.data_size(),
        token_cap=config.training.tokens_per_micro_batch,
        multiple_of=parallel.pipeline if parallel.virtual_pipeline else 1,
        align=2 * parallel.context if parallel.context > 1 else 1,
        cost=lambda length: sequence_flops(arch, length),
    )
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
        for indices in plan[groups.data_rank()]
    ]
