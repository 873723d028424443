"""The state that a training stage keeps from step to step: model chunks, optimizer, schedule, step count."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_lwz.config import Config
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.training.optimizer import Schedule


@dataclass
class TrainState:
    """The trainer's state on this rank.

    `chunks` are this rank's model chunks (one, or one per virtual pipeline stage), wrapped for data parallelism. `step`
    counts finished steps of the stage (in RL: rollout batches); the loop increments it.
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
