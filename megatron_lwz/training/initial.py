"""The initial state of a stage: a model with its first weights, optimizer and schedule, at step 0."""

from __future__ import annotations

from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.models.hf.load import HfFolder, NewHead, RandomInit, TensorSource, load_policy
from megatron_lwz.models.hf.name_map import SCORE
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.qwen import build_policy
from megatron_lwz.training.checkpoint import load_model
from megatron_lwz.training.optimizer import Schedule, build_optimizer, wrap_data_parallel
from megatron_lwz.training.state import TrainState


def build_train_state(config: Config) -> TrainState:
    """Builds the model with its initial weights, the optimizer and the schedule, at step 0.

    Collective: all ranks call it.
    """
    chunks = wrap_data_parallel(initial_policy(config), config)
    return TrainState(chunks, build_optimizer(chunks, config), Schedule(config), 0, config)


def initial_policy(config: Config) -> list[PolicyModel]:
    """Returns this rank's model chunks with weights from `checkpoint.load`, else `model.hf`, else a seeded random init.

    The random init does not depend on the layout. A reward model that starts from a policy's folder gets a new head.
    Raises ConfigError, DataError or CheckpointError.
    """
    policies = build_policy(config)
    if config.checkpoint.load is not None:
        load_model(policies, Path(config.checkpoint.load), verify=config.checkpoint.verify)
        return policies
    fresh = RandomInit(config.architecture(), config.run.seed)
    source: TensorSource = fresh
    if config.model.hf is not None:
        source = folder = HfFolder(Path(config.model.hf))
        if config.architecture().head == "scalar" and SCORE not in folder.names():
            source = NewHead(folder, fresh)
    load_policy(policies, source)
    return policies
