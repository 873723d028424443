"""What a layer of the model keeps for its backward pass, measured on the layer itself with a few tokens.

No formula says it a second time, so it holds for every layout, recomputation, kernel and adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.profiling.live_bytes import LiveBytes

_PROBE = 64
"""Tokens per rank that a layer is measured with, and twice as many: the difference is what each token takes."""


@dataclass(frozen=True)
class LayerBytes:
    """What a layer holds per token of this rank's share."""

    kept: float
    """From its forward to its backward pass."""
    passing: float
    """What it takes in addition while it computes, also again, with `training.recompute`."""
    inputs: float
    """What it keeps with `training.recompute: full`: its input."""


def layer_bytes(chunk: DistributedDataParallel) -> LayerBytes:
    """Measures the first layer of a chunk. Collective in its tensor and context group. 0 for a chunk without layers."""
    if not len(chunk.module.decoder.layers):
        return LayerBytes(0.0, 0.0, 0.0)
    with _without_hooks(chunk), torch.enable_grad():
        (kept, peak), (twice_kept, twice_peak) = (_probe(chunk.module, tokens) for tokens in (_PROBE, 2 * _PROBE))
    tokens = _PROBE * chunk.config.tensor_model_parallel_size
    kept, peak = (twice_kept - kept) / tokens, (twice_peak - peak) / tokens
    rows = chunk.config.tensor_model_parallel_size if chunk.config.sequence_parallel else 1
    inputs = chunk.config.hidden_size * chunk.config.params_dtype.itemsize / rows
    left = inputs if chunk.config.recompute_granularity == "full" else kept
    return LayerBytes(left, max(kept, peak) - left, inputs)


def _probe(policy: PolicyModel, rows: int) -> tuple[int, int]:
    """Returns bytes: what the policy's first layer keeps of `rows` tokens per tensor rank, and the most that it takes."""
    settings = policy.config
    tokens = rows * settings.tensor_model_parallel_size
    longest = tokens * settings.context_parallel_size
    shape = rows if settings.sequence_parallel else tokens, 1, settings.hidden_size
    bounds = torch.tensor([0, longest], dtype=torch.int32)
    params = PackedSeqParams("thd", bounds, bounds, max_seqlen_q=longest, max_seqlen_kv=longest)
    angles = policy.rotary_pos_emb(longest, packed_seq=True)
    skipped = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in skipped:
            saved[address] = tensor
        return tensor

    given = torch.zeros(shape, dtype=settings.params_dtype, requires_grad=True)
    with LiveBytes() as live, torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        policy.decoder.layers[0](
            hidden_states=given * 1, attention_mask=None, rotary_pos_emb=angles, packed_seq_params=params
        )
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    return kept, live.peak


@contextmanager
def _without_hooks(chunk: DistributedDataParallel) -> Iterator[None]:
    """Prevents that the probe gathers parameters (`parallel.overlap`)."""
    hooked = chunk.ddp_config.overlap_param_gather
    if hooked:
        chunk.disable_forward_pre_hook(param_sync=False)
    try:
        yield
    finally:
        if hooked:
            chunk.enable_forward_pre_hook()
