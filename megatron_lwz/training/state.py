"""The state that a training stage keeps from step to step: model chunks, optimizer, schedule, step count."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_lwz.config import Config
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.training.layer_bytes import LayerBytes
from megatron_lwz.training.optimizer import Schedule


@dataclass
class Room:
    """What is known of the memory that this state's steps take, on a machine without a GPU."""

    least_tokens: int = 0
    """The least `training.tokens_per_micro_batch` that the stage accepts: no advice goes below it."""
    tokens: int = 0
    """Tokens of a rank's share of the largest micro-batch that was found to fit."""
    layer: LayerBytes | None = None
    warned: bool = False


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
    room: Room = field(default_factory=Room)

    @property
    def policies(self) -> list[PolicyModel]:
        """The bare model chunks."""
        return [chunk.module for chunk in self.chunks]
