"""Sharing of GPUs between trainer and engines: one of them at a time. Does nothing without `rollout.colocated`."""

from __future__ import annotations

import math

import torch.distributed as dist

from megatron_lwz.config import Config
from megatron_lwz.distributed import exchange
from megatron_lwz.orchestrator.protocol import EngineControl
from megatron_lwz.training.offload import TrainerMemory
from megatron_lwz.training.state import TrainState


class Turns:
    """Switches the shared GPUs between trainer and engines. All methods may raise EngineError.

    Every rank calls `engines` and `trainer` alternately. The constructor gets `engines` on rank 0 only.
    """

    def __init__(self, config: Config, state: TrainState, engines: EngineControl | None, attempt: int) -> None:
        self._memory = TrainerMemory(state) if config.rollout.colocated else None
        self._engines = engines
        self._key = f"turns/{attempt}"
        self._turn = 0
        self._engines_write = False

    def weights(self) -> None:
        """Wakes sleeping engines before new weights are pushed: they allocate memory for weights only."""
        if self._memory is not None and self._engines is not None:
            self._engines.wake("weights")

    def engines(self) -> None:
        """Frees the trainer's GPU memory. Once all ranks have done so, the engines allocate memory for keys and values.

        Rank 0 may get here before the other ranks: it waits for them outside collectives.
        """
        if self._memory is None or self._engines_write:
            return
        self._memory.leave()
        exchange.post(f"{self._key}/{self._turn}/{dist.get_rank()}")
        if self._engines is not None:
            for rank in range(dist.get_world_size()):
                exchange.wait_until_posted(f"{self._key}/{self._turn}/{rank}", math.inf)
            self._engines.wake("kv_cache")
        self._engines_write = True

    def trainer(self) -> None:
        """Puts the engines to sleep and restores the trainer's memory. Other ranks call it only after rank 0 has."""
        if self._memory is None:
            return
        if self._engines is not None:
            self._engines.sleep()
        self._memory.come_back()
        self._engines_write = False
        self._turn += 1
