"""Reward components and how they become one advantage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from megatron_lwz.config.base import ComponentSection, Normalizer, Section
from megatron_lwz.config.format import FormatReward, OverlapReward, StructureReward
from megatron_lwz.config.judge import JudgeReward
from megatron_lwz.config.reward_model import WritingReward


class LengthReward(ComponentSection):
    """The paper's piecewise length reward (section 3.1)."""

    unit: Literal["words", "characters", "tokens"] = Field(
        "words", description="words = CJK characters + alphabetic words, as LongBench-Write counts; open"
    )
    maximum: int = Field(16_000, gt=0, description="L_max: length at which the over-length slope reaches 0; open")
    relative_maximum: float | None = Field(
        None, gt=1, description="L_max = this times the prompt's upper bound, instead of `maximum` for all; open"
    )
    clip: bool = Field(True, description="clip to [0, 1]; unclipped it goes negative beyond L_max; open")
    count_thinking: bool = Field(False, description="count the think segment too; open")
    shape: Literal["paper", "longbench"] = Field(
        "paper",
        description="paper: its piecewise formula; longbench: LongBench-Write's S_l, which falls faster below the range than above it and knows no L_max",
    )
    under_power: float = Field(
        1.0, gt=0, description="power of the reward below the range; above 1 is stricter; 1 = paper"
    )
    over_power: float = Field(1.0, gt=0, description="the same above the range; unequal powers make it asymmetric")
    use: Literal["component", "rescale"] = Field(
        "component",
        description="component: one of those averaged (paper, B); rescale: the other rewards are multiplied by it instead (GR3)",
    )


class FunctionReward(ComponentSection):
    """A component of your own: a plain or async Python function (docs/rewards.md). The path alone will do too."""

    path: str = Field(description="package.module:function")
    name: str = Field("", description="the component's name in metrics; empty: the function's")

    @model_validator(mode="before")
    @classmethod
    def _read_path(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @property
    def title(self) -> str:
        """The component's name."""
        return self.name or self.path.partition(":")[2].rpartition(".")[2]


class RewardSection(Section):
    """Components and how they become one advantage."""

    length: LengthReward = LengthReward()
    format: FormatReward = FormatReward()
    overlap: OverlapReward = OverlapReward()
    structure: StructureReward = StructureReward()
    writing: WritingReward = WritingReward()
    judges: tuple[JudgeReward, ...] = Field((), description="components scored by the model of section `judge`")
    functions: tuple[FunctionReward, ...] = Field((), description="components of your own")
    advantage_function: str | None = Field(
        None,
        description="package.module:function that makes advantages of the components' scores in place of `combine`, the normalizers and grpo.std_floor, see docs/rewards.md; null: those",
    )
    combine: Literal["advantages", "rewards"] = Field(
        "advantages",
        description="advantages: normalise each component in its group, then average (paper, B; the decoupled normalisation of GDPO, arXiv 2601.05242); rewards: average first",
    )
    normalizer: Normalizer = Field(
        "zscore", description="zscore: (r − mean)/std (B); range: scaled to [−1, 1] in the group (C); none: r − mean"
    )
    violators: dict[str, float] = Field(
        {},
        description="component → the score that a rollout must reach; one that does not gets a negative advantage (RLMR, B), see docs/rewards.md; empty = off",
    )
    violator_margin: float = Field(
        0.1, gt=0, description="how far below 0 the best violator's advantage is pushed, in advantage units; open"
    )
    shuffle: bool = Field(
        False, description="control experiment: permute scores among all rollouts of a step; nothing should be learned"
    )
