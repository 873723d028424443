"""The numbers that a simulation needs beside the config's settings, each with where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_lwz.config import Config
from megatron_lwz.planner.simulation.lengths import Lengths
from megatron_lwz.planner.simulation.pool import Engines
from megatron_lwz.planner.simulation.setting import Setting, Trainer, WeightSync

LOAD_SHARE = {"disk": 0.5, "nccl": 1.0}
"""Share of a weight sync in which engines hold their streams, by `weight_sync.transport`. Of files the trainer writes one
half of the time; no source."""


@dataclass(frozen=True)
class Numbers:
    """Numbers of a run, in seconds and tokens."""

    lengths: Lengths
    engines: Engines
    trainer: Trainer
    sync: WeightSync
    rewards: float
    sources: Mapping[str, str]
    """What → "measured", "plan", "given" or "assumed", and in what way."""


def setting_of(
    config: Config, numbers: Numbers, *, steps: int, staleness: int, over_sampling: float | None = None, seed: int = 0
) -> Setting:
    """Returns the setting of a config with these numbers, in which engines may run `staleness` steps ahead."""
    batch, grpo = config.training.prompts_per_step, config.grpo
    return Setting(
        steps=steps,
        batch=batch,
        engines=numbers.engines,
        trainer=numbers.trainer,
        sync=numbers.sync,
        rewards=numbers.rewards,
        staleness=staleness,
        over_sampling=over_sampling,
        refills=grpo.most_refills * batch if grpo.zero_variance == "refill" else 0,
        keeps_barren=grpo.zero_variance == "keep",
        accumulate=config.training.accumulate_groups,
        seed=seed,
    )


def load_share(config: Config, given: float | None = None) -> float:
    """Returns the share of a weight sync in which engines hold their streams: as given, else assumed."""
    return LOAD_SHARE[config.weight_sync.transport] if given is None else given


def share_said(config: Config, given: float | None = None) -> str:
    """Returns the same in words."""
    return f"{load_share(config, given):.0%} of it, {'assumed' if given is None else 'given'}"


def weight_sync(seconds: float, held: float) -> WeightSync:
    """Splits the seconds of a weight sync; engines hold their streams in the share `held` of it."""
    return WeightSync(seconds * (1 - held), seconds * held)
