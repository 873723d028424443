"""The curriculum of prompts: stages with a pool of prompts and a token limit, and the gates between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from megatron_lwz.config.base import Fraction, OneOrList, Section
from megatron_lwz.errors import ConfigError

SUCCESS = "success"
"""The gate metric that is the share of successful rollouts."""
KEY = "data.curriculum"
_AT_MOST_ONE = frozenset(
    {"length", "format", "overlap", "structure", "consistency", "length.in_range", "format.valid", "overlap.overlap"}
)
"""Scores that are never above 1, whatever the config says."""


class GateSection(Section):
    """When a stage ends: once `metric` reaches `at_least`, and after `max_steps` in any case. Both are open: no paper
    names thresholds for writing; DeepScaleR and FastCuRL (2503.17287) lengthen by hand."""

    metric: str = Field(
        SUCCESS,
        description="success: the share of rollouts that succeed (data.curriculum.success); or a component, e.g. length: its mean score; or a detail of its scores, e.g. length.in_range; open",
    )
    at_least: float | None = Field(
        None,
        description="the stage ends when the mean of the metric, over the stage's groups that the last `window` steps trained on, reaches this value, in the metric's unit; null: only max_steps ends it; open",
    )
    window: int = Field(10, gt=0, description="steps that the mean goes over; open")
    min_steps: int = Field(10, gt=0, description="steps that the stage lasts at least; open")
    max_steps: int | None = Field(
        None, gt=0, description="steps after which the stage ends whatever the metric is; null = it waits for ever"
    )


class StageSection(Section):
    """One stage: the prompts that are drawn, how long their rollouts may be, and when the next stage begins."""

    name: str = Field(
        min_length=1, description="name of the stage, in the log and in the journal; a running stage keeps its name"
    )
    asked_from: int = Field(
        0,
        ge=0,
        description="only prompts whose asked length (the upper bound of its range, in reward.length.unit) is at least this",
    )
    asked_to: int | None = Field(
        None,
        gt=0,
        description="only prompts whose asked length is at most this, in reward.length.unit; null = no bound. A prompt without a range is drawn only in stages without both bounds",
    )
    max_new_tokens: int | None = Field(
        None,
        gt=0,
        description="maximum tokens of a response in this stage, at most rollout.max_new_tokens (iterative lengthening, DeepScaleR; FastCuRL, 2503.17287); null: rollout.max_new_tokens",
    )
    gate: GateSection | None = Field(None, description="when the stage ends; every stage but the last has one")

    def holds(self, asked: int | None) -> bool:
        """Whether a prompt of this asked length belongs to the stage's pool; None for a prompt without a range."""
        if asked is None:
            return self.asked_from == 0 and self.asked_to is None
        return self.asked_from <= asked and (self.asked_to is None or asked <= self.asked_to)


class CurriculumSection(Section):
    """Which prompts are drawn when (docs/curriculum.md). Off until `stages` is not empty: the paper draws all prompts alike."""

    stages: Annotated[tuple[StageSection, ...], OneOrList] = Field(
        (), description="the stages, in order; a run goes through them forwards only; empty = no curriculum (paper)"
    )
    success: str = Field(
        "length.in_range",
        description="what a rollout succeeds by: a component, or component.detail; a truncated rollout never succeeds; open",
    )
    success_at_least: float = Field(1.0, description="value of `success` from which on a rollout succeeds; open")
    easy: Fraction | None = Field(
        None,
        description="a prompt rests when at least this share of its group's rollouts succeeded (prioritised sampling, Kimi k1.5, 2501.12599; DAPO, 2503.14476, drops such groups after they are written); null = never",
    )
    hard: Fraction | None = Field(
        None, description="a prompt rests when at most this share of its group's rollouts succeeded; null = never"
    )
    rest_epochs: int | None = Field(
        2,
        gt=0,
        description="epochs of its stage that a resting prompt is left out of; null = until the stage ends; open",
    )

    @property
    def used(self) -> bool:
        """Whether the run has a curriculum."""
        return bool(self.stages)

    def metrics(self) -> list[tuple[str, str]]:
        """Returns (key, metric) of every score that the curriculum reads, without SUCCESS."""
        found = [(f"{KEY}.success", self.success)]
        found += [
            (f"{_stage_key(place)}.gate.metric", stage.gate.metric)
            for place, stage in enumerate(self.stages)
            if stage.gate is not None and stage.gate.metric != SUCCESS
        ]
        return found

    def check(self, most_tokens: int, components: Sequence[str]) -> None:
        """Checks what single fields cannot. `most_tokens` is rollout.max_new_tokens, `components` the names of the rewards.

        Raises ConfigError.
        """
        if not self.used:
            if self.easy is not None or self.hard is not None:
                advice = "does nothing without a stage: add one for all prompts, stages: [{name: all}]"
                raise ConfigError(f"{KEY}.{'hard' if self.easy is None else 'easy'}", self.easy or self.hard, advice)
            return
        if self.easy is not None and self.hard is not None and self.hard >= self.easy:
            raise ConfigError(f"{KEY}.hard", self.hard, f"must be below easy = {self.easy}: else every prompt rests")
        if self.success in _AT_MOST_ONE and self.success_at_least > 1:
            advice = f"can never be reached: {self.success} is at most 1"
            raise ConfigError(f"{KEY}.success_at_least", self.success_at_least, advice)
        names = [stage.name for stage in self.stages]
        for place, stage in enumerate(self.stages):
            key = _stage_key(place)
            if not stage.name.isprintable() or stage.name.isspace():
                raise ConfigError(
                    f"{key}.name", stage.name, "must be one line of printable characters: it stands in the log"
                )
            if stage.name in names[:place]:
                raise ConfigError(f"{key}.name", stage.name, "is the name of an earlier stage: give each its own")
            if stage.asked_to is not None and stage.asked_to < stage.asked_from:
                advice = f"is below asked_from = {stage.asked_from}: no length is in between"
                raise ConfigError(f"{key}.asked_to", stage.asked_to, advice)
            if stage.max_new_tokens is not None and stage.max_new_tokens > most_tokens:
                advice = f"must be at most rollout.max_new_tokens = {most_tokens}, for which memory is planned"
                raise ConfigError(f"{key}.max_new_tokens", stage.max_new_tokens, advice)
            _check_gate(f"{key}.gate", stage, last=place == len(names) - 1)
        for key, metric in self.metrics():
            name, _, detail = metric.partition(".")
            if metric not in components and not (detail and name in components):
                share = "" if key == f"{KEY}.success" else f"{SUCCESS} or "
                advice = f"is no score of this run: write {share}one of its components, {', '.join(components)}, or a detail, e.g. length.in_range"
                raise ConfigError(key, metric, advice)

    def first_steps(self) -> Sequence[int]:
        """Returns the step at which each stage begins at the earliest, from 1."""
        found = [1]
        for stage, _ in pairwise(self.stages):
            found.append(found[-1] + (stage.gate.min_steps if stage.gate is not None else 0))
        return found


def _stage_key(place: int) -> str:
    return f"{KEY}.stages.{place}"


def _check_gate(key: str, stage: StageSection, *, last: bool) -> None:
    """Raises ConfigError for a gate that is missing, that leads nowhere, or that can never open."""
    gate = stage.gate
    if gate is None:
        if not last:
            raise ConfigError(key, None, f"stage '{stage.name}' would never end: say when the next one begins")
        return
    if last:
        raise ConfigError(key, gate.metric, f"stage '{stage.name}' is the last one: leave its gate out")
    if gate.max_steps is not None and gate.max_steps < gate.min_steps:
        raise ConfigError(f"{key}.max_steps", gate.max_steps, f"must be at least min_steps = {gate.min_steps}")
    if gate.at_least is None:
        if gate.max_steps is None:
            raise ConfigError(key, gate.metric, f"stage '{stage.name}' would never end: set at_least or max_steps")
    elif gate.at_least > 1 and (gate.metric == SUCCESS or gate.metric in _AT_MOST_ONE):
        raise ConfigError(f"{key}.at_least", gate.at_least, f"can never be reached: {gate.metric} is at most 1")
