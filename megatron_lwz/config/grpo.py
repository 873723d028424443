"""The GRPO loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Section


class GrpoSection(Section):
    """The loss. Equation numbers: docs/recipe.md."""

    group_size: int = Field(32, gt=1, description="G; paper: 32 (C)")
    clip_low: float = Field(0.2, ge=0, description="ratio ≥ 1 − clip_low; paper: 0.2 (C)")
    clip_high: float = Field(0.2, ge=0, description="ratio ≤ 1 + clip_high; paper: 0.2 (C)")
    dual_clip: float | None = Field(None, gt=1, description="bound on the loss of negative advantages; null = off")
    kl_coefficient: float = Field(0.0, ge=0, description="0 needs no reference model; paper: 0 (A)")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="k1 only with kl_placement: reward")
    kl_importance: bool = Field(
        True, description="weight the loss's KL by policy/behaviour: the reverse KL's gradient, also off policy; open"
    )
    kl_placement: Literal["loss", "reward"] = Field("loss", description="reward: subtract from the advantage, as k1")
    aggregation: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="token: mean over all tokens; sequence: mean of sequence means; constant: sum / constant_length; open",
    )
    constant_length: int = Field(14_000, gt=0, description="divisor per sequence of aggregation: constant, in tokens")
    ratio: Literal["token", "sequence"] = Field(
        "token", description="sequence: geometric-mean ratio of the sequence (GSPO); open"
    )
    truncated: Literal["mask", "penalty", "keep"] = Field(
        "mask",
        description="rollouts cut at the token limit: out of the loss and the group statistics, −truncation_penalty, or as they are; open",
    )
    truncation_penalty: float = Field(
        0.5, ge=0, description="subtracted from every component of a truncated rollout (truncated: penalty)"
    )
    std_floor: float = Field(1e-6, gt=0, description="added to the group's standard deviation; open")
    zero_variance: Literal["keep", "drop", "refill"] = Field(
        "drop",
        description="groups whose advantages are all 0: keep in the denominator, drop, or refill: other prompts take their place (DAPO's dynamic sampling); open",
    )
    most_refills: float = Field(
        4.0,
        ge=0,
        description="batches of groups that zero_variance: refill may replace per step; beyond, they are dropped",
    )
    entropy_coefficient: float = Field(0.0, description="bonus on the policy's entropy")
    mismatch: Literal["none", "token", "sequence"] = Field(
        "token", description="importance weight trainer/engine: per token or the sequence's geometric mean"
    )
    mismatch_mode: Literal["truncate", "mask"] = Field(
        "truncate", description="truncate the weight at mismatch_cap, or mask tokens beyond it"
    )
    mismatch_cap: float = Field(2.0, gt=1, description="C; mask keeps weights in [1/C, C]")

    def is_token_level(self, *, old_is_policy: bool) -> bool:
        """Whether a token's loss depends on that token alone, so that its gradient can be taken in the forward pass.

        A sequence's ratio does not, except where old is the policy itself: then it is 1.
        """
        return self.mismatch != "sequence" and (self.ratio == "token" or old_is_policy)
