"""What is simulated: the numbers of a run, all in seconds and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lwz.planner.simulation.pool import Engines


@dataclass(frozen=True)
class Trainer:
    """Seconds of the trainer's part of a step: log-probs, passes and update."""

    per_token: float
    """For each token of the sequences that are trained on, prompts included."""
    fixed: float = 0.0
    """For each step: the optimizer, and what does not depend on the tokens."""


@dataclass(frozen=True)
class WeightSync:
    """Seconds between the update and the next step."""

    export: float
    """The engines write meanwhile."""
    load: float = 0.0
    """The engines hold their streams meanwhile."""

    @property
    def seconds(self) -> float:
        """Both parts."""
        return self.export + self.load


@dataclass(frozen=True)
class Setting:
    """One run. The fields without a description here have that of the config."""

    steps: int
    batch: int
    """Groups of a step, `training.prompts_per_step`."""
    engines: Engines
    trainer: Trainer
    sync: WeightSync
    rewards: float = 0.0
    """Seconds from a group's last token until it can be trained on: commit and scores."""
    staleness: int = 0
    """`rollout.max_staleness`."""
    over_sampling: float | None = None
    """`rollout.over_sampling`."""
    refills: float = 0
    """Groups without variance that others may replace in a step."""
    keeps_barren: bool = False
    """Whether groups without variance that are not replaced cost the trainer time (`grpo.zero_variance: keep`)."""
    accumulate: int = 0
    """`training.accumulate_groups`."""
    seed: int = 0
    """Of engine failures. Lengths have a seed of their own."""

    @property
    def ahead(self) -> float:
        """Batches that are admitted beyond the awaited one."""
        return self.staleness if self.over_sampling is None else min(self.over_sampling, self.staleness)
