"""Reward components and how they become one advantage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Fraction, Section


class LengthReward(Section):
    """The paper's piecewise length reward (section 3.1)."""

    weight: float = Field(1.0, ge=0, description="paper: equal weights (B)")
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


class FormatReward(Section):
    """One think segment, one answer segment, no near-duplicate paragraphs (section 3.1)."""

    weight: float = Field(1.0, ge=0, description="paper: equal weights (B)")
    duplicate_penalty: Fraction = Field(
        0.5, description="subtracted times the share of near-duplicate paragraphs; open"
    )
    duplicate_threshold: Fraction = Field(
        0.6, description="Jaccard similarity from which two paragraphs are near-duplicates; open"
    )
    shingle: int = Field(3, gt=0, description="n-gram size: words, or characters in CJK text; open")
    minimum_shingles: int = Field(8, gt=0, description="shorter paragraphs are not compared; open")


class RewardSection(Section):
    """Components and how they become one advantage."""

    length: LengthReward = LengthReward()
    format: FormatReward = FormatReward()
    functions: tuple[str, ...] = Field((), description="extra components: package.module:function")
    combine: Literal["advantages", "rewards"] = Field(
        "advantages",
        description="advantages: normalise each component in its group, then average (paper, B); rewards: average first",
    )
    normalizer: Literal["zscore", "range", "none"] = Field(
        "zscore", description="zscore: (r − mean)/std (B); range: scaled to [−1, 1] in the group (C); none: r − mean"
    )
    shuffle: bool = Field(
        False, description="control experiment: permute scores among all rollouts of a step; nothing should be learned"
    )
