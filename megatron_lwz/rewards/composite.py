"""The reward components of a run, and their scores as tensors.

Components stay separate up to the advantage. Each is normalised within its group before the average
(`algorithms.advantages`), so that the component with the largest scale does not dominate.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from megatron_lwz.config.base import ComponentSection, Normalizer
from megatron_lwz.config.sections import JudgeSection, RewardSection
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.advantage_function import KEY, check_advantage_function
from megatron_lwz.rewards.consistency import ConsistencyComponent
from megatron_lwz.rewards.continuation import ContinuationComponent
from megatron_lwz.rewards.diversity import DiversityComponent
from megatron_lwz.rewards.format import FormatComponent
from megatron_lwz.rewards.functions import FunctionComponent
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_components import judge_components
from megatron_lwz.rewards.length import LengthComponent
from megatron_lwz.rewards.overlap import OverlapComponent
from megatron_lwz.rewards.structure import StructureComponent
from megatron_lwz.rewards.writing import WritingComponent
from megatron_lwz.types import ComponentScore, Group, ReportingReward, RewardFn

_NOT_QUALITY = {"length", "format", "overlap", "structure", "consistency", "diversity"}
"""Components that follow rules, or measure siblings. A product with them would make two rewards of one."""


def build_rewards(
    section: RewardSection,
    tokenizer: Tokenizer | None = None,
    judge: JudgeSection | None = None,
    *,
    weightless: bool = False,
) -> list[RewardFn]:
    """Builds the components, in the order of their columns. A `ClosableReward` must be closed in the loop that used it.

    The components of `reward.judges` ask `judge`. Raises ConfigError for a component that cannot be built, and if no
    component has a weight, unless it may be `weightless`: a teacher teaches instead.
    """
    check_components(section)
    if not weightless and not any(entry.weight > 0 for _, _, entry in section.components()):
        raise ConfigError("reward", "weight 0 for every component", "nothing would be learned: give one a weight")
    length = LengthComponent(section.length, tokenizer)
    rewards: list[RewardFn] = [length, FormatComponent(section.format, length.measure, tokenizer)]
    if section.overlap.used:
        rewards.append(OverlapComponent(section.overlap))
    if section.structure.used:
        rewards.append(StructureComponent(section.structure))
    if section.consistency.used:
        rewards.append(ConsistencyComponent(section.consistency))
    if section.writing.used:
        rewards.append(WritingComponent(section.writing))
    if section.continuation.used:
        rewards.append(ContinuationComponent(section.continuation))
    if section.diversity.used:
        rewards.append(DiversityComponent(section.diversity))
    if section.judges:
        rewards += judge_components(section.judges, Judge.as_reward(judge or JudgeSection()))
    rewards += [FunctionComponent(entry) for entry in section.functions]
    return rewards


def component_sections(section: RewardSection) -> dict[str, ComponentSection]:
    """Returns name → settings of every component, in the order of `build_rewards`."""
    return {name: entry for _, name, entry in section.components()}


def with_fixed_criteria(section: RewardSection) -> RewardSection:
    """Returns the section for an evaluation: no judge's criteria grow harder, so that scores of all times compare."""
    fixed = tuple(entry.model_copy(update={"rounds": 0}) for entry in section.judges)
    return section.model_copy(update={"judges": fixed})


def measured(section: ComponentSection) -> dict[str, Any]:
    """Returns the settings of a component that determine its score, without those that say how the score counts."""
    return section.model_dump(mode="json", exclude={"weight", "normalizer", "use", "rescales"})


def component_weights(section: RewardSection, names: Sequence[str]) -> torch.Tensor:
    """Returns the [R] fp32 weights of the named components."""
    known = component_sections(section)
    return torch.tensor([known[name].weight for name in names], dtype=torch.float32)


def component_normalizers(section: RewardSection, names: Sequence[str]) -> Normalizer | list[Normalizer]:
    """Returns one normaliser for each named component, or the only one if rewards are averaged first."""
    known = component_sections(section)
    if section.combine == "rewards":
        return section.normalizer
    return [known[name].normalizer or section.normalizer for name in names]


def rescaled_by_diversity(section: RewardSection) -> set[str]:
    """Returns the components that `reward.diversity.use: rescale` multiplies."""
    return set(section.diversity.rescales) or set(component_sections(section)) - _NOT_QUALITY


def find_violators(
    rewards: torch.Tensor, valid: torch.Tensor, names: Sequence[str], section: RewardSection
) -> torch.Tensor:
    """Returns [P, G] bool: whether a rollout has a valid score below its component's floor in `reward.violators`."""
    floors = torch.tensor([section.violators.get(name, -torch.inf) for name in names])
    return ((rewards < floors) & valid).any(-1)


def reward_metrics(rewards: Sequence[RewardFn]) -> dict[str, float]:
    """Returns the components' own counts since the start of the process (of those that are a `ReportingReward`)."""
    found: dict[str, float] = {}
    for reward in rewards:
        if isinstance(reward, ReportingReward):
            found.update(reward.metrics())
    return found


def check_components(section: RewardSection) -> None:
    """Raises ConfigError for names that are taken twice, unknown or invalid, and for settings without effect.

    Calls `reward.advantage_function` on made-up scores (`check_advantage_function`).
    """
    seen: set[str] = set()
    for key, name, entry in section.components():
        if name in seen:
            raise ConfigError(key, name, f"there is already a component named '{name}': give another `name`")
        if "/" in name:
            raise ConfigError(key, name, "a component's name must not hold '/'")
        if entry.normalizer is not None and section.combine == "rewards":
            raise ConfigError(
                f"{key}.normalizer",
                entry.normalizer,
                "rewards averaged first are normalised once: use combine: advantages",
            )
        seen.add(name)
    for name in section.violators:
        if name not in seen:
            raise ConfigError("reward.violators", name, f"is no component: choose among {', '.join(sorted(seen))}")
    _check_diversity(section, seen)
    if section.advantage_function is not None:
        _check_unused(section)
        names = list(component_sections(section))
        check_advantage_function(section.advantage_function, names, component_weights(section, names))


def _check_diversity(section: RewardSection, known: Collection[str]) -> None:
    """Raises ConfigError for `reward.diversity.rescales` that cannot be multiplied."""
    key, given = "reward.diversity.rescales", section.diversity.rescales
    for name in given:
        if name not in known or name == DiversityComponent.name:
            others = ", ".join(sorted(set(known) - {DiversityComponent.name}))
            raise ConfigError(key, name, f"is no other component: choose among {others}")
    if section.diversity.used and section.diversity.use == "rescale" and not rescaled_by_diversity(section):
        raise ConfigError(key, list(given), "no component rates quality: name those to multiply, or set use: component")


def _check_unused(section: RewardSection) -> None:
    """Raises ConfigError for settings that `reward.advantage_function` leaves without effect."""
    advice = f"has no effect beside {KEY}, which normalises and averages: set it back to"
    for name in ("combine", "normalizer"):
        if (value := getattr(section, name)) != (default := type(section).model_fields[name].default):
            raise ConfigError(f"reward.{name}", value, f"{advice} {default}")
    for key, _, entry in section.components():
        if entry.normalizer is not None:
            raise ConfigError(f"{key}.normalizer", entry.normalizer, f"{advice} null")


def score_tensors(groups: Sequence[Group], names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rewards [P, G, R] fp32 and their validity [P, G, R] bool. A missing score is invalid, with value 0."""
    missing = ComponentScore(0.0, valid=False)
    table = [[[scores.get(name, missing) for name in names] for scores in group.scores] for group in groups]
    rewards = torch.tensor([[[s.value if s.valid else 0.0 for s in row] for row in rows] for rows in table])
    valid = torch.tensor([[[s.valid for s in row] for row in rows] for rows in table], dtype=torch.bool)
    return rewards.to(torch.float32), valid


def shuffle_scores(
    rewards: torch.Tensor, valid: torch.Tensor, *, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives each rollout of the step another rollout's scores, all components together: the control `reward.shuffle`.

    Takes and returns [P, G, R] tensors. The same seed and step give the same permutation on every rank and after a
    resume.
    """
    prompts, group, components = rewards.shape
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    order = torch.randperm(prompts * group, generator=generator)
    return (
        rewards.reshape(-1, components)[order].view_as(rewards),
        valid.reshape(-1, components)[order].view_as(valid),
    )
