"""Writes a checkpoint in the form of the first versions: whole tensors, Megatron's own optimizer entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.torch import _replace_state_dict_keys_with_sharded_keys

from megatron_lwz.training.checkpoint import run_state
from megatron_lwz.training.checkpoint_writer import Snapshot, write_snapshot
from megatron_lwz.training.optimizer import parts
from megatron_lwz.training.state import TrainState


def write_earlier_checkpoint(state: TrainState, folder: Path, extra: dict[str, Any]) -> None:
    names = ["model"] if len(state.policies) == 1 else [f"model{index}" for index in range(len(state.policies))]
    model = {
        name: {key: value for key, value in policy.sharded_state_dict().items() if not isinstance(value, ShardedObject)}
        for name, policy in zip(names, state.policies, strict=True)
    }
    for part in parts(state.optimizer):
        _keep_bucket_padding(part)
    optimizer = state.optimizer.sharded_state_dict(model, metadata={"distrib_optim_sharding_type": "fully_reshardable"})
    sharded, common = save_preprocess({**model, "optimizer": optimizer})
    main, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
    write_snapshot(Snapshot(main, common, run_state(state, extra).files), folder)


def _keep_bucket_padding(part: Any) -> None:
    """Megatron-Core 0.16 gathers the buckets without the padding between them, and cuts at the padded offsets."""
    gather = getattr(part, "get_parameter_state_dp_zero", None)
    if gather is None:
        return

    def gather_padded(**options: Any) -> dict[Any, Any]:
        state: dict[Any, Any] = gather(**options)
        for index, buffer in enumerate(part.buffers):
            for tensors in state[index].values():
                for name in ("param", "exp_avg", "exp_avg_sq"):
                    tensors[name] = _spread(tensors[name], buffer)
        return state

    part.get_parameter_state_dp_zero = gather_padded


def _spread(packed: torch.Tensor, buffer: Any) -> torch.Tensor:
    spread, start = packed.new_zeros(buffer.numel), 0
    for bucket in buffer.buckets:
        spread[bucket.offset :][: bucket.numel_unpadded] = packed[start : start + bucket.numel_unpadded]
        start += bucket.numel_unpadded
    return spread
