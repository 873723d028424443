"""Keeps what the loss computes for single tokens, for a step that is to be read (`logging.token_values`)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_lwz.config import Config
from megatron_lwz.distributed import groups
from megatron_lwz.errors import FileSystemError
from megatron_lwz.rollout import token_values
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.grpo_batches import Update
from megatron_lwz.training.step import LossFn
from megatron_lwz.types import MicroBatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Taken:
    """The labelled tokens of a micro-batch, [n] each: sequence, position of the token in it, entropy, difference."""

    rollouts: tuple[tuple[int, int], ...]
    sequences: torch.Tensor
    positions: torch.Tensor
    values: torch.Tensor
    """[2, n] fp32."""


class TokenRecorder:
    """Takes the statistics of a step's micro-batches as its loss sees them. Each rank writes those that it computed.

    It waits for the GPU once per micro-batch, and communicates nothing.
    """

    def __init__(self, run: RunPaths, step: int) -> None:
        self._run, self._step = run, step
        self._taken: list[_Taken] = []

    def watch(self, loss: LossFn, update: Update) -> LossFn:
        """Returns `loss`, which then also keeps the values of the update's tokens."""
        rollouts = tuple(_identity(name) for name in update.rollouts)

        def watched(
            statistics: torch.Tensor, micro: MicroBatch, index: int
        ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            if rollouts and groups.tensor_rank() == 0:
                self._take(statistics.detach(), micro, None if update.old is None else update.old[index], rollouts)
            return loss(statistics, micro, index)

        return watched

    def write(self) -> None:
        """Writes this rank's file, if it computed any values. A disk that refuses costs the file, not the run."""
        if not self._taken:
            return
        segments = torch.cat([_segments(taken) for taken in self._taken]).numpy()
        entropy, difference = torch.cat([taken.values for taken in self._taken], dim=1).numpy()
        try:
            token_values.write(
                token_values.file_of(self._run.token_values_of(self._step), dist.get_rank()),
                segments,
                entropy,
                difference,
            )
        except FileSystemError as error:
            log.warning("step %d: the values of its tokens are lost: %s", self._step, error)

    def _take(
        self,
        statistics: torch.Tensor,
        micro: MicroBatch,
        old: torch.Tensor | None,
        rollouts: tuple[tuple[int, int], ...],
    ) -> None:
        labelled = micro.source >= 0
        logprob, entropy, _ = statistics
        difference = (logprob if old is None else old) - micro.behaviour_logprobs
        values = torch.stack([entropy, difference])[:, labelled].float().cpu()
        # position t predicts the token at t + 1
        places = (micro.sequence_ids[labelled].cpu(), micro.positions[labelled].cpu() + 1)
        self._taken.append(_Taken(rollouts, *places, values))


def recorder_of(config: Config, run: RunPaths, step: int) -> TokenRecorder | None:
    """Returns a recorder if the step's values are to be written."""
    interval = config.logging.token_values
    return TokenRecorder(run, step) if interval and step % interval == 0 else None


def _segments(taken: _Taken) -> torch.Tensor:
    """Returns the rows of consecutive tokens of one sequence: group, rollout, first position, number. [S, 4] int64."""
    follows = (taken.sequences.diff() == 0) & (taken.positions.diff() == 1)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + (~follows).nonzero().squeeze(1)])
    counts = torch.cat([starts, torch.tensor([len(taken.sequences)])]).diff()
    if not len(taken.sequences):
        return torch.zeros(0, 4, dtype=torch.int64)
    identities = torch.tensor(taken.rollouts, dtype=torch.int64)[taken.sequences[starts]]
    return torch.cat([identities, taken.positions[starts].unsqueeze(1), counts.unsqueeze(1)], 1)


def _identity(name: str) -> tuple[int, int]:
    """Returns group and index of a rollout's id (`Draft.id`)."""
    group, _, index = name.rpartition("-")
    return int(group), int(index)
