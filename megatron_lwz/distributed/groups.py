"""Short names for Megatron's process groups and this rank's place in them."""

from __future__ import annotations

import torch.distributed as dist

from megatron_lwz.distributed import jit

jit.install()  # before Megatron-Core is imported

from megatron.core import parallel_state  # noqa: E402


def tensor_group() -> dist.ProcessGroup:
    """Ranks that share every layer of a stage."""
    return parallel_state.get_tensor_model_parallel_group()


def pipeline_group() -> dist.ProcessGroup:
    """Ranks that hold the stages of one copy of the model."""
    return parallel_state.get_pipeline_model_parallel_group()


def context_group() -> dist.ProcessGroup:
    """Ranks that share the tokens of one micro-batch."""
    return parallel_state.get_context_parallel_group()


def data_context_group() -> dist.ProcessGroup:
    """Ranks with the same weights: over them gradients are summed."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def tensor_rank() -> int:
    """Place in `tensor_group`."""
    return parallel_state.get_tensor_model_parallel_rank()


def tensor_size() -> int:
    """Ranks in `tensor_group`."""
    return parallel_state.get_tensor_model_parallel_world_size()


def pipeline_size() -> int:
    """Number of pipeline stages."""
    return parallel_state.get_pipeline_model_parallel_world_size()


def context_rank() -> int:
    """Place in `context_group`."""
    return parallel_state.get_context_parallel_rank()


def context_size() -> int:
    """Ranks in `context_group`."""
    return parallel_state.get_context_parallel_world_size()


def data_rank() -> int:
    """Place among the ranks with the same weights and different micro-batches."""
    return parallel_state.get_data_parallel_rank()


def data_size() -> int:
    """Number of copies of the model."""
    return parallel_state.get_data_parallel_world_size()


def is_first_stage(chunk: int | None = None) -> bool:
    """Whether this rank (or its virtual `chunk`, counted from 0) embeds the tokens."""
    return parallel_state.is_pipeline_first_stage(ignore_virtual=chunk is None, vp_stage=chunk)


def is_last_stage(chunk: int | None = None) -> bool:
    """Whether this rank (or its virtual `chunk`, counted from 0) holds the output layer."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=chunk is None, vp_stage=chunk)


def last_stage_rank() -> int:
    """Global rank of the last stage of this rank's pipeline."""
    return parallel_state.get_pipeline_model_parallel_last_rank()


def is_rank_zero() -> bool:
    """Whether this is rank 0 of all; True also before any group exists."""
    return not dist.is_initialized() or dist.get_rank() == 0
