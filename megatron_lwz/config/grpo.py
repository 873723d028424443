"""The GRPO loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Section
from megatron_lwz.errors import ConfigError


class GrpoSection(Section):
    """The loss. Equation numbers: docs/recipe.md."""

    group_size: int = Field(32, gt=1, description="G; paper: 32 (C)")
    objective: Literal["clip", "cispo"] = Field(
        "clip",
        description="clip: PPO's clipped ratio; cispo: log-prob times the clipped ratio without gradient, so that no token is left out (CISPO, MiniMax-M1)",
    )
    loss_function: str | None = Field(
        None, description="package.module:function of your own in place of `objective` (docs/losses.md); null = none"
    )
    clip_low: float = Field(
        0.2, ge=0, description="ratio ≥ 1 − clip_low; from 1 on no lower bound (CISPO's choice); paper: 0.2 (C)"
    )
    clip_high: float = Field(
        0.2, ge=0, description="ratio ≤ 1 + clip_high; above clip_low: clip-higher (DAPO); paper: 0.2 (C)"
    )
    dual_clip: float | None = Field(
        None, gt=1, description="bound on the loss of negative advantages (objective: clip); null = off"
    )
    kl_coefficient: float = Field(0.0, ge=0, description="0 needs no reference model; paper: 0 (A)")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="k1 only with kl_placement: reward")
    kl_importance: bool = Field(
        True, description="weight the loss's KL by policy/behaviour: the reverse KL's gradient, also off policy; open"
    )
    kl_placement: Literal["loss", "reward", "function"] = Field(
        "loss",
        description="reward: subtract from the advantage, as k1; function: loss_function adds a KL of its own",
    )
    aggregation: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="token: mean over all tokens (DAPO); sequence: mean of sequence means (GRPO); constant: sum / constant_length (Dr. GRPO); open",
    )
    constant_length: int = Field(14_000, gt=0, description="divisor per sequence of aggregation: constant, in tokens")
    ratio: Literal["token", "sequence"] = Field(
        "token", description="sequence: geometric-mean ratio of the sequence (GSPO); open"
    )
    truncated: Literal["mask", "penalty", "keep"] = Field(
        "mask",
        description="rollouts cut at the token limit: out of the loss and the group statistics (overlong filtering), −truncation_penalty, or as they are; open",
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
        "token",
        description="importance weight trainer/engine: per token or the sequence's geometric mean; none: none, or loss_function's own",
    )
    mismatch_mode: Literal["truncate", "mask"] = Field(
        "truncate", description="truncate the weight at mismatch_cap (TIS), or mask tokens beyond it (IcePop)"
    )
    mismatch_cap: float = Field(2.0, gt=1, description="C; mask keeps weights in [1/C, C]")

    def check(self) -> None:
        """What rules an option out beside another. Raises ConfigError."""
        if self.objective == "cispo" and self.dual_clip is not None:
            advice = "bounds the loss of objective: clip; cispo clips the weight itself: set it to null"
            raise ConfigError("grpo.dual_clip", self.dual_clip, advice)
        if self.loss_function is None:
            if self.kl_placement == "function":
                raise ConfigError("grpo.kl_placement", "function", "needs grpo.loss_function")
            return
        for name, default in (("objective", "clip"), ("ratio", "token"), ("dual_clip", None)):
            if getattr(self, name) != default:
                advice = f"is the built-in objective's, and grpo.loss_function takes its place: set it to {default or 'null'}"
                raise ConfigError(f"grpo.{name}", getattr(self, name), advice)

    def is_token_level(self, *, old_is_policy: bool) -> bool:
        """Whether a token's loss depends on that token alone, so that its gradient can be taken in the forward pass.

        A sequence's ratio does not, except where old is the policy itself: then it is 1. A `loss_function` says by its
        parameters what it needs (`algorithms/loss_function.py`).
        """
        return self.mismatch != "sequence" and (self.ratio == "token" or old_is_policy)
