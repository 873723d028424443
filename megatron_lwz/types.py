"""The nouns that rooms exchange: frozen, with shape, dtype and unit per field.

Shape legend: P prompts, G rollouts per prompt (group size), R reward components, T tokens of a packed
micro-batch on this rank, N sequences of a batch, S segments of a pack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol, runtime_checkable

import torch

IGNORED_LABEL = -100
"""A position whose log-prob nobody needs: prompt tokens, padding. The log-prob op skips it at no cost."""


class FinishReason(str, Enum):
    """Why a rollout ended. `LENGTH`: truncated, it hit its token limit. `GUARD`: we stopped it; no engine ever says so."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    GUARD = "guard"


@dataclass(frozen=True)
class LengthRange:
    """The asked length, inclusive, in the length reward's unit (by default CJK characters + words)."""

    lower: int
    upper: int


@dataclass(frozen=True)
class Prompt:
    """One row of a prompt file. `template` picks think-then-answer or direct; unknown keys stay in `extra`."""

    id: str
    text: str
    length: LengthRange | None = None
    language: str | None = None
    template: Literal["think", "direct"] = "think"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightVersion:
    """Which weights wrote a token: the optimizer step, the attempt (a rewind makes another), and a checksum (hex)."""

    step: int
    attempt: int = 0
    checksum: str = ""

    def __str__(self) -> str:
        return f"{self.step}.{self.attempt}.{self.checksum}"

    @classmethod
    def parse(cls, text: str) -> WeightVersion:
        """Inverse of `str`. Raises ValueError on any other text."""
        step, attempt, checksum = text.split(".", 2)
        return cls(int(step), int(attempt), checksum)


@dataclass(frozen=True)
class VersionSegment:
    """Run-length code: the tokens from `start` (index into the response) on were written by `version`."""

    start: int
    version: WeightVersion


@dataclass(frozen=True)
class TokenDelta:
    """What one streamed message adds to a rollout: ids and natural-log probabilities, equally many."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: WeightVersion


@dataclass(frozen=True)
class Alarm:
    """A rule of the stream guard held for the first time when a rollout had `position` tokens.

    `stopped`: the rollout was ended there; else it went on. `scores`: what a stopped rollout is given in place of a
    component's own score, None masks it; empty where every component was determined.
    """

    rule: str
    position: int
    stopped: bool = False
    scores: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """One finished response. `tokens` includes the tokens of the stop string and the EOS, if sampled.

    `logprobs` are the engine's (behaviour) log-probs: full softmax at the sampling temperature, natural log.
    `text` decodes `tokens` without special tokens; when `stop` names a stop string, `text` still ends with it.
    `alarms` in order of position; the last one of a rollout that the guard stopped is `stopped`.
    """

    id: str
    prompt_id: str
    index: int
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[VersionSegment, ...]
    finish_reason: FinishReason
    text: str
    stop: str | None = None
    alarms: tuple[Alarm, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether the token limit cut the text off."""
        return self.finish_reason is FinishReason.LENGTH

    @property
    def given_scores(self) -> Mapping[str, float | None]:
        """Component → the score that a stopped rollout is given instead of its own; None: masked."""
        return self.alarms[-1].scores if self.alarms and self.alarms[-1].stopped else {}


@dataclass(frozen=True)
class ComponentScore:
    """One reward component's verdict on one rollout. An invalid score is masked out, never counted as 0.

    `details` are plain numbers worth a metric (`{"words": 412.0, "in_range": 1.0}`); `version` names judge or rule.
    """

    value: float
    valid: bool = True
    details: Mapping[str, float] = field(default_factory=dict)
    version: str = "rule-1"


class RewardFn(Protocol):
    """A named reward component: scores a whole group so that pairwise judges fit the same shape."""

    @property
    def name(self) -> str:
        """The component's name in configs and metrics."""
        ...

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> Sequence[ComponentScore]:
        """One score per rollout, in order. A failure returns `valid=False`; it never raises for a bad answer."""
        ...


@runtime_checkable
class PerRolloutReward(RewardFn, Protocol):
    """A component whose score of a rollout depends on no other one: asked as soon as a rollout is finished."""

    async def score_one(self, prompt: Prompt, rollout: Rollout) -> ComponentScore:
        """The score of one rollout; `settle` of all of them is what `score` gives."""
        ...

    def settle(self, scores: Sequence[ComponentScore]) -> Sequence[ComponentScore]:
        """The group's column, when every rollout has its score: where one failure masks the whole group."""
        ...


@runtime_checkable
class ClosableReward(RewardFn, Protocol):
    """A component that holds connections or other things of the event loop in which it scored."""

    async def close(self) -> None:
        """Lets go of them; the component may score again, in another event loop too."""
        ...


@runtime_checkable
class ReportingReward(RewardFn, Protocol):
    """A component with metrics of its own."""

    def metrics(self) -> dict[str, float]:
        """Metric → value, counted since the start of the process."""
        ...


@dataclass(frozen=True)
class StreamVerdict:
    """What a guard thinks of a rollout so far: which rules hold, and which components' scores are still open."""

    rules: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    """Components whose score the text to come can still change; not worked out while no rule holds."""


class StreamGuard(Protocol):
    """Watches one rollout while it is written."""

    def feed(self, text: str) -> StreamVerdict:
        """Takes the next piece of text. What it says of a text does not depend on how that was cut into pieces."""
        ...


@dataclass(frozen=True)
class Group:
    """All G rollouts of one prompt with their scores: `scores[g][component]`. `admitted` is the trainer step then."""

    id: int
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[Mapping[str, ComponentScore], ...]
    admitted: int


@dataclass(frozen=True)
class RewardColumns:
    """The scores of P groups as `reward.advantage_function` reads them (host memory).

    They are as `reward.length.use` and `grpo.truncated` leave them: rescaled by length, less the penalty of truncated rollouts.
    """

    rewards: torch.Tensor
    """[P, G, R] fp64: scores; without meaning where `valid` is False."""
    valid: torch.Tensor
    """[P, G, R] bool: False where a component gave a rollout no score (masked)."""
    included: torch.Tensor
    """[P, G] bool: False for a rollout that takes no part (truncated, under `grpo.truncated: mask`): its advantage is 0."""
    truncated: torch.Tensor
    """[P, G] bool: the token limit cut the rollout off."""
    names: tuple[str, ...]
    """The R components, in the order of the columns."""
    weights: torch.Tensor
    """[R] fp64: the components' `weight`, ≥ 0. The built-in average is over the valid components of weight > 0."""


@dataclass(frozen=True)
class SequenceBatch:
    """The N sequences of one training step, flat, the same on every rank (host memory).

    Per-token tensors are indexed like `tokens`; values on prompt tokens are 0 and unused.
    """

    tokens: torch.Tensor
    """[sum of lengths] int64: prompt then response of each sequence, one after the other."""
    offsets: torch.Tensor
    """[N + 1] int64: sequence i is tokens[offsets[i]:offsets[i + 1]]."""
    prompt_lengths: torch.Tensor
    """[N] int64: the first tokens of each sequence that were given, not written."""
    behaviour_logprobs: torch.Tensor
    """[sum of lengths] fp32: the engine's log-prob of each response token."""
    advantages: torch.Tensor
    """[N] fp32."""
    weights: torch.Tensor
    """[N] fp32: loss weight of the sequence; 0 drops it (truncated and masked, zero variance …)."""

    def __len__(self) -> int:
        return int(self.prompt_lengths.numel())

    def lengths(self) -> list[int]:
        """Tokens per sequence, prompt included."""
        return (self.offsets[1:] - self.offsets[:-1]).tolist()


@dataclass(frozen=True)
class MicroBatch:
    """Sequences packed into one row for one forward pass; this rank's context-parallel share, T tokens.

    `labels[t]` is the token that position t must predict, or IGNORED_LABEL. All [T] tensors follow `tokens`.
    """

    tokens: torch.Tensor
    """[T] int64 inputs."""
    labels: torch.Tensor
    """[T] int64, the next token, IGNORED_LABEL where no log-prob is needed."""
    positions: torch.Tensor
    """[T] int64, counted from 0 in every segment."""
    cu_seqlens: torch.Tensor
    """[S + 1] int32 starts of the segments in the whole pack (before the context-parallel split), padding included."""
    max_seqlen: int
    """Longest segment of the whole pack, in tokens."""
    sequence_ids: torch.Tensor
    """[T] int64: index into the SequenceBatch, −1 on padding."""
    source: torch.Tensor
    """[T] int64: index of the *label* token in SequenceBatch.tokens, −1 where the label is ignored."""
    behaviour_logprobs: torch.Tensor
    """[T] fp32, of the label token."""
    advantages: torch.Tensor
    """[T] fp32, of the label's sequence."""
    weights: torch.Tensor
    """[T] fp32: loss weight of the label token, aggregation (token / sequence / constant) folded in; 0 on ignored labels."""
