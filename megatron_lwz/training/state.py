"""What a training stage carries from step to step: model chunks, optimizer, schedule, step count."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_lwz.config import Config
from megatron_lwz.models.hf.load import HfFolder, NewHead, RandomInit, TensorSource, load_policy
from megatron_lwz.models.hf.name_map import SCORE
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.qwen2 import build_policy
from megatron_lwz.training.checkpoint import load_model
from megatron_lwz.training.optimizer import Schedule, build_optimizer, wrap_data_parallel


@dataclass
class TrainState:
    """The trainer's state on this rank.

    `chunks` are this rank's model chunks (one, or one per virtual pipeline stage), wrapped for data parallelism.
    `step` counts finished steps of the stage (RL: rollout batches); the loop advances it.
    """

    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    scheduler: Schedule
    step: int
    config: Config

    @property
    def policies(self) -> list[PolicyModel]:
        """The bare model chunks."""
        return [chunk.module for chunk in self.chunks]


def build_train_state(config: Config) -> TrainState:
    """Model with its initial weights, optimizer and schedule, at step 0. Collective: all ranks call it."""
    chunks = wrap_data_parallel(initial_policy(config), config)
    return TrainState(chunks, build_optimizer(chunks, config), Schedule(config), 0, config)


def initial_policy(config: Config) -> list[PolicyModel]:
    """This rank's model chunks with weights from `checkpoint.load`, else `model.hf`, else a seeded random init.

    The random init does not depend on the layout. A reward model that starts from a policy's folder gets a new head.
    Raises ConfigError, DataError or CheckpointError.
    """
    policies = build_policy(config)
    if config.checkpoint.load is not None:
        load_model(policies, Path(config.checkpoint.load))
        return policies
    fresh = RandomInit(config.architecture(), config.run.seed)
    source: TensorSource = fresh
    if config.model.hf is not None:
        source = folder = HfFolder(Path(config.model.hf))
        if config.architecture().head == "scalar" and SCORE not in folder.names():
            source = NewHead(folder, fresh)
    load_policy(policies, source)
    return policies
