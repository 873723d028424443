"""Worker side of test_step_memory: two ranks, of which one lacks memory."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from megatron_lwz.config import validate
from megatron_lwz.distributed import host_memory, launch
from megatron_lwz.errors import OutOfMemory
from megatron_lwz.planner.device import measure
from megatron_lwz.training import step_memory
from megatron_lwz.training.initial import build_train_state
from megatron_lwz.training.step import train_step
from tests.support.tiny_step import TOKENS, config_of, loss, micro_batch


def refused() -> dict[str, Any]:
    """What both ranks say when the machine of rank 1 has no room for the step, and whether a later one is made."""
    config = config_of()
    launch.initialize(config)
    state = build_train_state(config)
    real = host_memory.free_memory
    host_memory.free_memory = lambda: 1000 if dist.get_rank() == 1 else real()
    host_memory.free_swap = lambda: 0
    said = None
    try:
        train_step(state, [micro_batch()], loss, 2 * TOKENS)
    except OutOfMemory as error:
        said = str(error)
    host_memory.free_memory = real
    return {"said": said, "loss": train_step(state, [micro_batch()], loss, 2 * TOKENS).loss}


def bound(layouts: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Layout → what this rank surely needs for a step, over the most that the step's tensors took."""
    found = {}
    real = step_memory._need
    for name, tree in layouts.items():
        needs: list[float] = []
        step_memory._need = lambda *given, seen=needs: seen.append(real(*given).surely) or real(*given)  # type: ignore[misc]
        config = validate(tree)
        mine = measure(config, "sft")[dist.get_rank() if dist.is_initialized() else 0]
        found[name] = max(needs) / (mine.instants["update"] - sum(mine.state.values()))
    step_memory._need = real
    return found
