"""Reward components, and how they are combined into one advantage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from megatron_lwz.config.base import CommaList, ComponentSection, Normalizer, OneOrList, Section
from megatron_lwz.config.embedding import DiversityReward, OverlapReward
from megatron_lwz.config.format import ConsistencyReward, FormatReward, StructureReward
from megatron_lwz.config.judge import JudgeReward
from megatron_lwz.config.reward_model import ContinuationReward, WritingReward


class LengthReward(ComponentSection):
    """The paper's piecewise length reward (section 3.1)."""

    unit: Literal["words", "characters", "tokens"] = Field(
        "words",
        description="unit of lengths; words = CJK characters + alphabetic words, as LongBench-Write counts; open",
    )
    maximum: int = Field(
        16_000, gt=0, description="L_max: length at which the reward of an over-long text reaches 0; open"
    )
    relative_maximum: float | None = Field(
        None,
        gt=1,
        description="L_max as a multiple of the prompt's upper bound; replaces `maximum` for all prompts; open",
    )
    clip: bool = Field(
        True, description="clip the reward to [0, 1]; without it, the reward is negative beyond L_max; open"
    )
    count_thinking: bool = Field(False, description="count the think segment too; open")
    shape: Literal["paper", "longbench"] = Field(
        "paper",
        description="paper: its piecewise formula; longbench: LongBench-Write's S_l, which falls faster below the range than above it and has no L_max",
    )
    under_power: float = Field(
        1.0, gt=0, description="exponent of the reward below the range; above 1 is stricter; 1 = paper"
    )
    over_power: float = Field(
        1.0,
        gt=0,
        description="exponent of the reward above the range; a value other than under_power makes the reward asymmetric",
    )
    use: Literal["component", "rescale"] = Field(
        "component",
        description="component: one of the averaged components (paper, B); rescale: not averaged; the other rewards are multiplied by it (GR3)",
    )


class FunctionReward(ComponentSection):
    """A custom reward component: a plain or async Python function (docs/rewards.md). A bare path works too."""

    path: str = Field(description="package.module:function")
    name: str = Field("", description="the component's name in metrics; empty: the function's name")

    @model_validator(mode="before")
    @classmethod
    def _read_path(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @property
    def title(self) -> str:
        """The component's name."""
        return self.name or self.path.partition(":")[2].rpartition(".")[2]


class RewardSection(Section):
    """Reward components, and how they are combined into one advantage."""

    length: LengthReward = LengthReward()
    format: FormatReward = FormatReward()
    overlap: OverlapReward = OverlapReward()
    structure: StructureReward = StructureReward()
    consistency: ConsistencyReward = ConsistencyReward()
    writing: WritingReward = WritingReward()
    continuation: ContinuationReward = ContinuationReward()
    diversity: DiversityReward = DiversityReward()
    judges: Annotated[tuple[JudgeReward, ...], OneOrList] = Field(
        (), description="components that the model of section `judge` scores"
    )
    functions: Annotated[tuple[FunctionReward, ...], CommaList] = Field((), description="custom components")
    advantage_function: str | None = Field(
        None,
        description="package.module:function that computes advantages from the components' scores; replaces `combine`, the normalizers and grpo.std_floor, see docs/rewards.md; null: these are used",
    )
    combine: Literal["advantages", "rewards"] = Field(
        "advantages",
        description="advantages: normalise each component in its group, then average (paper, B; the decoupled normalisation of GDPO, arXiv 2601.05242); rewards: average first, then normalise",
    )
    normalizer: Normalizer = Field(
        "zscore",
        description="zscore: (r − mean)/std (B); range: scaled to [−1, 1] in the group (C); none: r − mean (Dr. GRPO)",
    )
    violators: dict[str, float] = Field(
        {},
        description="component → minimum score of a rollout; a rollout below it gets a negative advantage (RLMR, B), see docs/rewards.md; empty = off",
    )
    violator_margin: float = Field(
        0.1,
        gt=0,
        description="the largest advantage of a violating rollout is at most minus this value, in advantage units; open",
    )
    shuffle: bool = Field(
        False,
        description="control experiment: permute scores among all rollouts of a step, so that nothing should be learned",
    )

    def components(self) -> list[tuple[str, str, ComponentSection]]:
        """Returns (config key, name, settings) of every component that is used, in the order of their columns."""
        optional = ("overlap", "structure", "consistency", "writing", "continuation", "diversity")
        used = [name for name in optional if getattr(self, name).used]
        return [
            *((f"reward.{name}", name, getattr(self, name)) for name in ("length", "format", *used)),
            *(("reward.judges", entry.title, entry) for entry in self.judges),
            *(("reward.functions", entry.title, entry) for entry in self.functions),
        ]
