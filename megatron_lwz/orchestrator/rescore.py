"""Rescoring of stored rollouts: their rewards and advantages under another reward config.

Nothing is written. Scores of components that measure the same under both configs are taken from the journal. Rules are
computed again. Components that call a server are scored again only on request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from megatron_lwz.config import Config
from megatron_lwz.config.base import ComponentSection
from megatron_lwz.config.sections import (
    ConsistencyReward,
    ContinuationReward,
    DiversityReward,
    OverlapReward,
    RewardSection,
    StructureReward,
    WritingReward,
)
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.data.text.length import count_units
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError
from megatron_lwz.orchestrator.experience import group_advantages
from megatron_lwz.rewards.composite import (
    build_rewards,
    check_components,
    component_sections,
    measured,
    score_tensors,
    with_fixed_criteria,
)
from megatron_lwz.rollout.scoring import close_rewards
from megatron_lwz.types import ComponentScore, Group, RewardFn

Source = Literal["stored", "computed", "asked", "outdated", "absent"]
"""Source of a new score. outdated: stored, although the settings changed; absent: masked. `--ask` replaces both."""

_AT_ONCE = 8
"""Number of groups that are scored concurrently."""


@dataclass(frozen=True)
class Side:
    """One rollout under one config. `scores` are in the order of the names, None where masked."""

    scores: tuple[float | None, ...]
    advantage: float
    parts: tuple[float, ...]
    """Contribution of each component to the advantage; empty if `reward.advantage_function` gives one number."""
    included: bool


@dataclass(frozen=True)
class Rescored:
    """One rollout under both configs.

    `step` is the training step that consumed it, None if none has. `length` is in CJK characters + words.
    """

    group: int
    step: int | None
    prompt: str
    index: int
    length: int
    truncated: bool
    old: Side
    new: Side


class Rescorer:
    """The old and the new config, and the source of each new component's scores."""

    def __init__(self, old: Config, new: Config, *, ask: bool = False, again: bool = False) -> None:
        """`ask`: call servers where settings changed.

        `again`: compute rules even where they did not. Raises LwzError.
        """
        for config in (old, new):
            check_components(config.reward)
        self.old, self.new = old, new
        self.old_names = tuple(component_sections(old.reward))
        self.new_names = tuple(component_sections(new.reward))
        self.sources = _sources(old, new, ask=ask, again=again)
        wanted = {name for name, source in self.sources.items() if source in ("computed", "asked")}
        for name, server in (("writing", "lwz serve-reward"), ("continuation", "lwz serve-reward --likelihood")):
            if name in wanted and getattr(new.reward, name).url is None:
                advice = f"start `{server}` and name its address: rescore starts no server"
                raise ConfigError(f"reward.{name}.url", None, advice)
        self._wanted = wanted

    def run(self, groups: Iterable[Group], steps: Mapping[int, int], heard: Callable[[int], None]) -> list[Rescored]:
        """Returns all rollouts of the groups, in order.

        `steps`: group id → step. `heard` is called with the number of finished groups.
        """
        return asyncio.run(self._run(groups, steps, heard))

    async def _run(
        self, groups: Iterable[Group], steps: Mapping[int, int], heard: Callable[[int], None]
    ) -> list[Rescored]:
        rewards = self._build()
        found: list[Rescored] = []
        waiting, done = iter(groups), 0
        try:
            while batch := list(islice(waiting, _AT_ONCE)):
                scored = await asyncio.gather(*(self._score(group, rewards) for group in batch))
                for before, after in zip(batch, scored, strict=True):
                    found += self._compare(before, after, steps.get(before.id))
                done += len(batch)
                heard(done)
        finally:
            await close_rewards(rewards)
        return found

    def _build(self) -> list[RewardFn]:
        if not self._wanted:
            return []
        section, wanted = with_fixed_criteria(self.new.reward), self._wanted
        only = section.model_copy(
            update={
                "violators": {},
                "advantage_function": None,  # it was checked with all components, and scores need none
                "length": section.length.model_copy(update={"weight": 1.0}),  # always built: it measures for others
                "overlap": section.overlap if "overlap" in wanted else OverlapReward(),
                "structure": section.structure if "structure" in wanted else StructureReward(),
                "consistency": section.consistency if "consistency" in wanted else ConsistencyReward(),
                "writing": section.writing if "writing" in wanted else WritingReward(),
                "continuation": section.continuation if "continuation" in wanted else ContinuationReward(),
                "diversity": section.diversity if "diversity" in wanted else DiversityReward(),
                "judges": tuple(entry for entry in section.judges if entry.title in wanted),
                "functions": tuple(entry for entry in section.functions if entry.title in wanted),
            }
        )
        tokenizer = Tokenizer(self.new.tokenizer_dir()) if section.length.unit == "tokens" else None
        return [reward for reward in build_rewards(only, tokenizer, self.new.judge) if reward.name in wanted]

    async def _score(self, group: Group, rewards: Sequence[RewardFn]) -> Group:
        """Returns the group with its new scores. Raises ConfigError when a prompt does not fit the new settings."""
        columns = await asyncio.gather(*(reward.score(group.prompt, group.rollouts) for reward in rewards))
        fresh = dict(zip((reward.name for reward in rewards), columns, strict=True))
        missing = ComponentScore(0.0, valid=False)
        scores = [
            {
                name: fresh[name][place]
                if name in fresh and name not in rollout.given_scores
                else stored.get(name, missing)
                for name in self.new_names
            }
            for place, (stored, rollout) in enumerate(zip(group.scores, group.rollouts, strict=True))
        ]
        return replace(group, scores=tuple(scores))

    def _compare(self, before: Group, after: Group, step: int | None) -> list[Rescored]:
        old = _sides(before, self.old, self.old_names)
        new = _sides(after, self.new, self.new_names)
        return [
            Rescored(
                before.id,
                step,
                before.prompt.id,
                rollout.index,
                count_units(parse_rollout(before.prompt, rollout).answer or ""),
                rollout.truncated,
                one,
                other,
            )
            for rollout, one, other in zip(before.rollouts, old, new, strict=True)
        ]


def _sides(group: Group, config: Config, names: Sequence[str]) -> list[Side]:
    rewards, valid = score_tensors([group], names)
    found = group_advantages([group], config, names=names, scores=(rewards, valid))
    count = len(names) if found.names[: len(names)] == tuple(names) else 0
    parts = found.parts[0, :, :count].tolist()
    return [
        Side(
            tuple(value if there else None for value, there in zip(row, ok, strict=True)),
            total,
            tuple(parts[place]),
            included,
        )
        for place, (row, ok, total, included) in enumerate(
            zip(
                rewards[0].tolist(), valid[0].tolist(), found.total[0].tolist(), found.included[0].tolist(), strict=True
            )
        )
    ]


def _sources(old: Config, new: Config, *, ask: bool, again: bool) -> dict[str, Source]:
    before, after = component_sections(old.reward), component_sections(new.reward)
    sources: dict[str, Source] = {}
    for name, section in after.items():
        same = name in before and _measures(before[name]) == _measures(section)
        if _asks_a_server(name, new.reward):
            judged = any(entry.title == name for entry in new.reward.judges)
            if same and not (judged and old.judge != new.judge):
                sources[name] = "stored"
            else:
                sources[name] = "asked" if ask else "outdated" if name in before else "absent"
        else:
            sources[name] = "stored" if same and not again else "computed"
    return sources


def _measures(section: ComponentSection) -> tuple[type[ComponentSection], dict[str, object]]:
    return type(section), measured(section)


def _asks_a_server(name: str, section: RewardSection) -> bool:
    if name in ("overlap", "diversity"):
        return getattr(section, name).url is not None
    return name in ("writing", "continuation") or any(entry.title == name for entry in section.judges)
