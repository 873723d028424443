"""The initial state of a stage: a model with its first weights, optimizer and schedule, at step 0."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_lwz.config import Config
from megatron_lwz.config.sections import CheckpointSection
from megatron_lwz.distributed import exchange, groups, host_memory, platform
from megatron_lwz.errors import OutOfMemory
from megatron_lwz.models.hf.export import checksum_policy
from megatron_lwz.models.hf.load import (
    HfFolder,
    NewAdapter,
    NewHead,
    RandomInit,
    TensorSource,
    load_adapter,
    load_policy,
)
from megatron_lwz.models.hf.name_map import SCORE
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.qwen import build_policy
from megatron_lwz.training.checkpoint import load_model
from megatron_lwz.training.optimizer import Schedule, build_optimizer, wrap_data_parallel
from megatron_lwz.training.state import TrainState
from megatron_lwz.units import GIB


def build_train_state(config: Config) -> TrainState:
    """Builds the model with its initial weights, the optimizer and the schedule, at step 0.

    Collective: all ranks call it. Raises what `initial_policy` does, and OutOfMemory.
    """
    policies = initial_policy(config)
    _require_memory(policies, config)
    chunks = wrap_data_parallel(policies, config)
    return TrainState(chunks, build_optimizer(chunks, config), Schedule(config), 0, config)


def _require_memory(policies: list[PolicyModel], config: Config) -> None:
    """Raises OutOfMemory where gradients and optimizer state would not fit in the memory of a machine without a GPU.

    Linux would end the process when it touches that memory, with nothing said. Collective.
    """
    if platform.has_gpu():
        return
    counts = [(p.numel(), p.dtype) for policy in policies for p in policy.parameters() if p.requires_grad]
    sharing = groups.data_size() * groups.context_size() if config.parallel.distributed_optimizer else 1
    masters = sum(4 * count for count, dtype in counts if dtype != torch.float32)
    needed = sum(4 * count for count, _ in counts) + (sum(8 * count for count, _ in counts) + masters) / sharing
    share = exchange.largest(host_memory.share(needed))
    if share > 1.0:
        free = host_memory.free_memory()
        raise OutOfMemory(
            f"gradients and optimizer state take {needed / GIB:.1f} GiB per rank, {100 * share:.0f} % of a machine's free memory "
            f"({free / GIB:.1f} GiB on this one): train adapters (lora.rank), a smaller model, or on more machines"
        )


def initial_policy(config: Config) -> list[PolicyModel]:
    """Returns this rank's model chunks with weights from `checkpoint.load`, else `model.hf`, else a seeded random init.

    With LoRA the frozen base comes from `model.hf` or the random init, and the adapter from `checkpoint.load`, or it is
    new. Neither random init nor a new adapter depends on the layout. A reward model that starts from a policy's folder
    gets a new head. Collective. Raises ConfigError, DataError or CheckpointError.
    """
    policies, load, adapted = build_policy(config), config.checkpoint.load, config.adapter() is not None
    if adapted or load is None:
        load_policy(policies, _source(config))
    if adapted:
        load_adapter(policies, NewAdapter(config.run.seed))
        base = checksum_policy(policies, merged=False)
        for policy in policies:
            policy.base = base
    if load is not None:
        load_model(policies, Path(load), verify=config.checkpoint.verify)
    return policies


def saved_policy(config: Config, folder: Path) -> list[PolicyModel]:
    """Returns the policy of a checkpoint or run folder, whose settings are `config`; with LoRA its base and its adapter.

    Collective. Raises ConfigError, DataError or CheckpointError.
    """
    return initial_policy(config.model_copy(update={"checkpoint": CheckpointSection(load=str(folder))}))


def _source(config: Config) -> TensorSource:
    fresh = RandomInit(config.architecture(), config.run.seed)
    if config.model.hf is None:
        return fresh
    folder = HfFolder(Path(config.model.hf))
    new_head = config.architecture().head == "scalar" and SCORE not in folder.names()
    return NewHead(folder, fresh) if new_head else folder
