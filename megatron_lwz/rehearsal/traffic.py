"""Which collectives a rank calls, over which group, with how many bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

_NAMES: Mapping[str, str] = {
    "allreduce_": "all-reduce",
    "allreduce_coalesced_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "allgather_into_tensor_coalesced_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_": "reduce-scatter",
    "reduce_scatter_tensor_coalesced_": "reduce-scatter",
    "broadcast_": "broadcast",
    "gather_": "gather",
    "scatter_": "scatter",
    "alltoall_base_": "all-to-all",
    "alltoall_": "all-to-all",
    "send": "send",
    "recv_": "receive",
}
"""torch's operation → its usual name. Barriers carry nothing."""


def seen(func: Any, args: tuple[Any, ...]) -> tuple[str, str, int, int] | None:
    """Returns (operation, group, its ranks, bytes) of a collective; None for any other operation, and for barriers.

    Groups are tensor, context, pipeline, data (data × context), all or other. The bytes are those of the whole tensor: of
    what an all-gather gives, of what a reduce-scatter takes.
    """
    if func.namespace != "c10d" or (name := _NAMES.get(func.overloadpacket.__name__)) is None:
        return None
    group = next(dist.ProcessGroup.unbox(value) for value in args if isinstance(value, torch.ScriptObject))
    sizes = (sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, Tensor)) for value in args)
    return name, _label(group), group.size(), max(sizes)


def _label(group: dist.ProcessGroup) -> str:
    # This imports Megatron-Core, which must find Transformer Engine's stand-in by then.
    from megatron_lwz.distributed import groups

    known = {
        "tensor": groups.tensor_group(),
        "context": groups.context_group(),
        "pipeline": groups.pipeline_group(),
        "data": groups.data_context_group(),
        "all": dist.group.WORLD,
    }
    return next((name for name, other in known.items() if other and other.group_name == group.group_name), "other")
