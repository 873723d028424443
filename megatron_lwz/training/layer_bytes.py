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
    settings, layer = chunk.config, chunk.module.decoder.layers[0]
    tokens = _PROBE * settings.tensor_model_parallel_size
    with _without_hooks(chunk), torch.enable_grad():
        kept = _per_token(chunk.module, tokens)
        layer.recompute_mlp, recomputes = False, layer.recompute_mlp
        whole = _per_token(chunk.module, tokens) if recomputes else kept
        layer.recompute_mlp = recomputes
    rows = settings.tensor_model_parallel_size if settings.sequence_parallel else 1
    inputs = settings.hidden_size * settings.params_dtype.itemsize / rows
    left = inputs if settings.recompute_granularity == "full" else kept
    return LayerBytes(left, whole - left, inputs)


def _per_token(policy: PolicyModel, tokens: int) -> float:
    """Returns what the policy's first layer keeps of each token, by the difference of two sizes."""
    return (_probe(policy, 2 * tokens) - _probe(policy, tokens)) / tokens


def _probe(policy: PolicyModel, tokens: int) -> int:
    """Returns the bytes that the policy's first layer keeps of `tokens` tokens per context rank."""
    settings = policy.config
    rows = tokens // settings.tensor_model_parallel_size
    longest = tokens * settings.context_parallel_size
    shape = rows if settings.sequence_parallel else tokens, 1, settings.hidden_size
    bounds = torch.tensor([0, longest], dtype=torch.int32)
    params = PackedSeqParams("thd", bounds, bounds, max_seqlen_q=longest, max_seqlen_kv=longest)
    angles = policy.rotary_pos_emb(longest, packed_seq=True)
    skipped = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skipped:
            saved[storage.data_ptr()] = storage
        return tensor.detach()  # an operation that keeps its own output with its history would never be freed

    given = torch.zeros(shape, dtype=settings.params_dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        policy.decoder.layers[0](
            hidden_states=given * 1, attention_mask=None, rotary_pos_emb=angles, packed_seq_params=params
        )
    return sum(storage.nbytes() for storage in saved.values())


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
