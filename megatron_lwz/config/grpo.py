"""The GRPO loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Section, Url, UserPath, Variable
from megatron_lwz.errors import ConfigError


class TeacherServer(Section):
    """A teacher on a server with vLLM's routes (docs/distillation.md)."""

    url: Url | None = Field(None, description="URL of the server, for example http://host:8000; null = none")
    model: str | None = Field(None, description="name under which the server serves the teacher")
    api_key_env: Variable = Field("LWZ_TEACHER_TOKEN", description="environment variable with the server's token")
    max_requests: int = Field(16, gt=0, description="maximum concurrent requests, one text each")
    timeout: float = Field(600.0, gt=0, description="timeout of one request, in seconds")
    retries: int = Field(5, ge=0, description="maximum retries of a failed request; after that, the run ends")
    backoff: float = Field(
        1.0, gt=0, description="seconds before the first retry; doubles with each further retry, up to 60"
    )


class GrpoSection(Section):
    """The GRPO loss. Equation numbers refer to docs/recipe.md."""

    group_size: int = Field(32, gt=1, description="G, rollouts per prompt; paper: 32 (C)")
    objective: Literal["clip", "cispo"] = Field(
        "clip",
        description="clip: PPO's clipped ratio; cispo: log-prob weighted by the clipped ratio without gradient, so that every token keeps a gradient (CISPO, MiniMax-M1)",
    )
    loss_function: str | None = Field(
        None,
        description="package.module:function of a custom policy loss that replaces `objective` (docs/losses.md); null = none",
    )
    clip_low: float = Field(
        0.2,
        ge=0,
        description="lower bound of the ratio: 1 − clip_low; values ≥ 1 mean no lower bound (CISPO's choice); paper: 0.2 (C)",
    )
    clip_high: float = Field(
        0.2,
        ge=0,
        description="upper bound of the ratio: 1 + clip_high; larger than clip_low: clip-higher (DAPO); paper: 0.2 (C)",
    )
    dual_clip: float | None = Field(
        None,
        gt=1,
        description="upper bound on the loss of tokens with negative advantage, as a multiple of |advantage| (dual clip; objective: clip only); null = off",
    )
    kl_coefficient: float = Field(
        0.0, ge=0, description="coefficient of the KL to the reference model; 0 needs no reference model; paper: 0 (A)"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k3", description="KL estimator per token; k1 only with kl_placement: reward"
    )
    kl_importance: bool = Field(
        True,
        description="weight the KL in the loss by policy / behaviour, which gives the gradient of the reverse KL off policy too; open",
    )
    kl_placement: Literal["loss", "reward", "function"] = Field(
        "loss",
        description="loss: add the KL to the loss; reward: subtract it from the advantage, as k1; function: loss_function adds its own KL",
    )
    teacher: UserPath | None = Field(
        None,
        description="Hugging Face folder of a frozen model that takes the place of the reference model: on-policy distillation (GKD, 2306.13649), with kl_coefficient 1 and kl_placement: reward (docs/distillation.md); null = the policy that the run began with",
    )
    teacher_server: TeacherServer = Field(
        TeacherServer(),
        description="a teacher whose log-probs come from a server with vLLM's routes, in place of `teacher`",
    )
    aggregation: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="token: mean over all tokens (DAPO); sequence: mean of sequence means (GRPO); constant: sum / constant_length (Dr. GRPO); open",
    )
    constant_length: int = Field(14_000, gt=0, description="divisor per sequence of aggregation: constant, in tokens")
    ratio: Literal["token", "sequence"] = Field(
        "token",
        description="token: ratio per token; sequence: geometric mean of the sequence's token ratios (GSPO); open",
    )
    truncated: Literal["mask", "penalty", "keep"] = Field(
        "mask",
        description="rollouts truncated at the token limit: mask: excluded from the loss and the group statistics (overlong filtering); penalty: truncation_penalty is subtracted; keep: unchanged; open",
    )
    truncation_penalty: float = Field(
        0.5, ge=0, description="subtracted from every component's score of a truncated rollout (truncated: penalty)"
    )
    std_floor: float = Field(1e-6, gt=0, description="added to the group's standard deviation; open")
    zero_variance: Literal["keep", "drop", "refill"] = Field(
        "drop",
        description="groups whose advantages are all 0: keep: they count in the denominator; drop: they do not; refill: they are replaced by groups of other prompts (DAPO's dynamic sampling); open",
    )
    most_refills: float = Field(
        4.0,
        ge=0,
        description="zero_variance: refill: maximum replacements per step, in batches of groups; above this limit, groups are dropped",
    )
    entropy_coefficient: float = Field(0.0, description="coefficient of the entropy bonus")
    mismatch: Literal["none", "token", "sequence"] = Field(
        "token",
        description="importance weight trainer / engine (old / behaviour): token: per token; sequence: geometric mean over the sequence; none: no weight, or loss_function computes it",
    )
    mismatch_mode: Literal["truncate", "mask"] = Field(
        "truncate",
        description="truncate: cap the weight at mismatch_cap (TIS); mask: set it to 0 outside [1/mismatch_cap, mismatch_cap] (IcePop)",
    )
    mismatch_cap: float = Field(
        2.0, gt=1, description="C, the cap of the importance weight; mask keeps weights in [1/C, C]"
    )
    mismatch_alarm: float | None = Field(
        0.1,
        gt=0,
        description="warn when the mean |log-prob of the trainer − log-prob of the engine| of a step exceeds this many nats per token (10 times as many where tokens are of older weights), or 5 times what the run's first steps had (docs/reliability.md); null = never",
    )

    @property
    def taught(self) -> bool:
        """Whether a teacher takes the place of the reference model."""
        return self.teacher is not None or self.teacher_server.url is not None

    def check(self) -> None:
        """Checks that the options are compatible with each other. Raises ConfigError."""
        if self.objective == "cispo" and self.dual_clip is not None:
            advice = "bounds the loss of objective: clip; cispo clips the weight itself: set it to null"
            raise ConfigError("grpo.dual_clip", self.dual_clip, advice)
        self._check_teacher()
        if self.loss_function is None:
            if self.kl_placement == "function":
                raise ConfigError("grpo.kl_placement", "function", "needs grpo.loss_function")
            return
        for name, default in (("objective", "clip"), ("ratio", "token"), ("dual_clip", None)):
            if getattr(self, name) != default:
                advice = f"is the built-in objective's, and grpo.loss_function takes its place: set it to {default or 'null'}"
                raise ConfigError(f"grpo.{name}", getattr(self, name), advice)

    def _check_teacher(self) -> None:
        """Checks that a teacher teaches. Raises ConfigError."""
        if not self.taught:
            return
        server = self.teacher_server
        key, named = ("grpo.teacher", self.teacher) if server.url is None else ("grpo.teacher_server.url", server.url)
        if server.url is not None and self.teacher is not None:
            raise ConfigError(
                "grpo.teacher", self.teacher, "is a second teacher beside grpo.teacher_server: name one of them"
            )
        if server.url is not None and not server.model:
            advice = "name the model that the server serves (vLLM's --served-model-name)"
            raise ConfigError("grpo.teacher_server.model", server.model, advice)
        if self.kl_coefficient == 0:
            advice = f"does nothing with grpo.kl_coefficient 0: set it, to 1 for distillation, or {key}: null"
            raise ConfigError(key, named, advice)
        if self.zero_variance != "keep":
            advice = "leaves out groups from which the policy can still learn the teacher's words: set it to keep"
            raise ConfigError("grpo.zero_variance", self.zero_variance, advice)

    def is_token_level(self, *, old_is_policy: bool) -> bool:
        """Whether a token's loss depends on that token alone, so that its gradient can be computed in the forward pass.

        A sequence-level ratio depends on the whole sequence, except where old is the policy itself: then the
        ratio is 1. For a `loss_function`, its parameters decide (`algorithms/loss_function.py`).
        """
        return self.mismatch != "sequence" and (self.ratio == "token" or old_is_policy)
