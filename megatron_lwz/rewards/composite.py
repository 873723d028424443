"""The reward components of a run, and their scores as tensors.

Components stay apart up to the advantage: each is normalised in its own group before the average
(`algorithms.advantages`), so that the component with the largest scale does not rule.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from megatron_lwz.config.sections import RewardSection
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.format import FormatComponent
from megatron_lwz.rewards.length import LengthComponent
from megatron_lwz.types import ComponentScore, Group, Prompt, RewardFn, Rollout

logger = logging.getLogger(__name__)


def build_rewards(section: RewardSection, tokenizer: Tokenizer | None = None) -> list[RewardFn]:
    """Length, format, then the user's functions. Raises ConfigError for a function that cannot be loaded."""
    length = LengthComponent(section.length, tokenizer)
    rewards: list[RewardFn] = [length, FormatComponent(section.format, length.measure, tokenizer)]
    for path in section.functions:
        component = FunctionComponent(path)
        if any(component.name == other.name for other in rewards):
            raise ConfigError("reward.functions", path, f"there is already a component named '{component.name}'")
        rewards.append(component)
    return rewards


def component_weights(section: RewardSection, names: Sequence[str]) -> torch.Tensor:
    """[R] fp32 weights of the named components; a user function weighs 1."""
    known = {"length": section.length.weight, "format": section.format.weight}
    return torch.tensor([known.get(name, 1.0) for name in names], dtype=torch.float32)


class FunctionComponent:
    """A user's `package.module:function`: plain or async, `(prompt, rollouts) -> [float or None, …]`.

    None or a number that is not finite masks that rollout's score; an exception masks the whole group's and is logged.
    """

    def __init__(self, path: str) -> None:
        """Imports the function; its name becomes the component's. Raises ConfigError."""
        self._function = _load(path)
        self.name = path.partition(":")[2].rpartition(".")[2]

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """One score per rollout. A plain function runs in a thread: it must not hold up the rollouts' streams."""
        try:
            if inspect.iscoroutinefunction(self._function):
                values = await self._function(prompt, rollouts)
            else:
                values = await asyncio.to_thread(self._function, prompt, rollouts)
            scores = [_to_score(value) for value in values]
            if len(scores) != len(rollouts):
                raise ValueError(f"{len(scores)} scores for {len(rollouts)} rollouts")
        except Exception as error:  # whatever a user's function raises costs its own column, not the run
            logger.warning("reward %s failed on prompt %s, masked: %r", self.name, prompt.id, error)
            return [ComponentScore(0.0, valid=False) for _ in rollouts]
        return scores


def _load(path: str) -> Callable[..., Any]:
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise ConfigError("reward.functions", path, "must read package.module:function")
    try:
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError("reward.functions", path, f"cannot be imported ({error})") from error
    if not callable(function):
        raise ConfigError("reward.functions", path, "is not a function")
    return function


def _to_score(value: Any) -> ComponentScore:
    if value is None or not math.isfinite(float(value)):
        return ComponentScore(0.0, valid=False, version="function")
    return ComponentScore(float(value), version="function")


def score_tensors(groups: Sequence[Group], names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards [P, G, R] fp32 and their validity [P, G, R] bool; a component without a score is invalid, value 0."""
    missing = ComponentScore(0.0, valid=False)
    table = [[[scores.get(name, missing) for name in names] for scores in group.scores] for group in groups]
    rewards = torch.tensor([[[s.value if s.valid else 0.0 for s in row] for row in rows] for rows in table])
    valid = torch.tensor([[[s.valid for s in row] for row in rows] for rows in table], dtype=torch.bool)
    return rewards.to(torch.float32), valid


def shuffle_scores(
    rewards: torch.Tensor, valid: torch.Tensor, *, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The control experiment `reward.shuffle`: hands each rollout of the step another one's scores, all components together.

    [P, G, R] in and out. The same seed and step give the same permutation on every rank and after a resume.
    """
    prompts, group, components = rewards.shape
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    order = torch.randperm(prompts * group, generator=generator)
    return (
        rewards.reshape(-1, components)[order].view_as(rewards),
        valid.reshape(-1, components)[order].view_as(valid),
    )
