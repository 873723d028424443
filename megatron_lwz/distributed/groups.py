"""Short names for Megatron's process groups and this rank's place in them."""

from __future__ import annotations

import torch.distributed as dist

from megatron_lwz.distributed import jit

jit.install()  # before Megatron-Core is imported

from megatron.core import parallel_state  # noqa: E402


def tensor_group() -> dist.ProcessGroup:
    """Returns the group of ranks that share every layer of a pipeline stage."""
    return parallel_state.get_tensor_model_parallel_group()


def pipeline_group() -> dist.ProcessGroup:
    """Returns the group of ranks that hold the stages of one copy of the model."""
    return parallel_state.get_pipeline_model_parallel_group()


def context_group() -> dist.ProcessGroup:
    """Returns the group of ranks that share the tokens of one micro-batch."""
    return parallel_state.get_context_parallel_group()


def data_context_group() -> dist.ProcessGroup:
    """Returns the group of ranks with the same weights. Gradients are summed over it."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def tensor_rank() -> int:
    """Returns this rank's index in `tensor_group`."""
    return parallel_state.get_tensor_model_parallel_rank()


def tensor_size() -> int:
    """Returns the number of ranks in `tensor_group`."""
    return parallel_state.get_tensor_model_parallel_world_size()


def pipeline_size() -> int:
    """Returns the number of pipeline stages."""
    return parallel_state.get_pipeline_model_parallel_world_size()


def pipeline_rank() -> int:
    """Returns this rank's pipeline stage, from 0."""
    return int(parallel_state.get_pipeline_model_parallel_rank())


def context_rank() -> int:
    """Returns this rank's index in `context_group`."""
    return parallel_state.get_context_parallel_rank()


def context_size() -> int:
    """Returns the number of ranks in `context_group`."""
    return parallel_state.get_context_parallel_world_size()


def data_rank() -> int:
    """Returns this rank's index among the ranks with the same weights and different micro-batches."""
    return parallel_state.get_data_parallel_rank()


def data_size() -> int:
    """Returns the number of copies of the model."""
    return parallel_state.get_data_parallel_world_size()


def is_first_stage(chunk: int | None = None) -> bool:
    """Whether this rank (or its virtual `chunk`, counted from 0) embeds the tokens."""
    return parallel_state.is_pipeline_first_stage(ignore_virtual=chunk is None, vp_stage=chunk)


def is_last_stage(chunk: int | None = None) -> bool:
    """Whether this rank (or its virtual `chunk`, counted from 0) holds the output layer."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=chunk is None, vp_stage=chunk)


def last_stage_rank() -> int:
    """Returns the global rank of the last stage of this rank's pipeline."""
    return parallel_state.get_pipeline_model_parallel_last_rank()


def is_rank_zero() -> bool:
    """Whether this is global rank 0. Also True before any process group exists."""
    return not dist.is_initialized() or dist.get_rank() == 0
