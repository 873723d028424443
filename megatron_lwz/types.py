"""The data types that packages exchange: frozen, with shape, dtype and unit per field.

Shape legend: P prompts, G rollouts per prompt (group size), R reward components, T tokens of a packed
micro-batch on this rank, N sequences of a batch, S segments of a pack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:  # only annotations need it: who reads journals and texts does not load torch
    import torch

IGNORED_LABEL = -100
"""Label of a position that needs no log-prob: prompt tokens, padding. The log-prob op skips it at no cost."""
LARGEST_SCORE = 1e12
"""Largest absolute value of a score or an advantage. Loss and gradients are fp32: far larger ones make them infinite."""


def is_score(value: float) -> bool:
    """Whether a number can be a score: finite, and at most LARGEST_SCORE in absolute value."""
    return abs(value) <= LARGEST_SCORE  # false for NaN


class FinishReason(str, Enum):
    """Why a rollout ended.

    `LENGTH`: it was truncated at its token limit. `GUARD`: the stream guard stopped it; engines never report this
    value.
    """

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    GUARD = "guard"


@dataclass(frozen=True)
class LengthRange:
    """The requested length, inclusive, in the length reward's unit (by default CJK characters + words)."""

    lower: int
    upper: int


@dataclass(frozen=True)
class Prompt:
    """One row of a prompt file. `template` selects think-then-answer or direct. Unknown keys are kept in `extra`."""

    id: str
    text: str
    length: LengthRange | None = None
    language: str | None = None
    template: Literal["think", "direct"] = "think"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightVersion:
    """Identity of the weights that generated a token.

    It consists of the optimizer step, the attempt (each rewind starts another) and a checksum (hex).
    """

    step: int
    attempt: int = 0
    checksum: str = ""

    def __str__(self) -> str:
        return f"{self.step}.{self.attempt}.{self.checksum}"

    @classmethod
    def parse(cls, text: str) -> WeightVersion:
        """Parses the text that `str` returns. Raises ValueError for any other text."""
        step, attempt, checksum = text.split(".", 2)
        return cls(int(step), int(attempt), checksum)


@dataclass(frozen=True)
class VersionSegment:
    """Run-length code of versions: `version` generated the tokens from `start` (index into the response) on."""

    start: int
    version: WeightVersion


@dataclass(frozen=True)
class TokenDelta:
    """The tokens that one streamed message adds to a rollout: ids and natural-log probabilities, equally many."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: WeightVersion


@dataclass(frozen=True)
class Alarm:
    """The first time that a rule of the stream guard held for a rollout, which then had `position` tokens.

    `stopped`: whether the guard stopped the rollout there. `scores` replaces the scores of components for a stopped
    rollout; None masks a component. It is empty if every component's score was already determined.
    """

    rule: str
    position: int
    stopped: bool = False
    scores: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """One finished response. `tokens` includes the tokens of the stop string and the EOS, if sampled.

    `logprobs` are the engine's (behaviour) log-probs: full softmax at the sampling temperature, natural log.
    `text` decodes `tokens` without special tokens. If `stop` names a stop string, `text` still ends with it.
    `alarms` are in order of position. If the guard stopped the rollout, the last alarm is `stopped`.
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
        """Whether the rollout was truncated at the token limit."""
        return self.finish_reason is FinishReason.LENGTH

    @property
    def given_scores(self) -> Mapping[str, float | None]:
        """Scores by component that replace those of a stopped rollout; None masks a component."""
        return self.alarms[-1].scores if self.alarms and self.alarms[-1].stopped else {}


Reason = tuple[str, str]
"""What a reason of a score is about ("" for the whole text), and the reason in the judge's words."""


@dataclass(frozen=True)
class ComponentScore:
    """One reward component's score of one rollout. An invalid score is masked out, never counted as 0.

    A score that `is_score` refuses is invalid, wherever it comes from: a function, a server or a journal. `details` are
    numbers to report as metrics (`{"words": 412.0, "in_range": 1.0}`). `version` names the judge or rule. `reasons` are
    for people who read the rollout.
    """

    value: float
    valid: bool = True
    details: Mapping[str, float] = field(default_factory=dict)
    version: str = "rule-1"
    reasons: tuple[Reason, ...] = ()

    def __post_init__(self) -> None:
        if not is_score(self.value):
            object.__setattr__(self, "valid", False)


class RewardFn(Protocol):
    """A named reward component. It scores a whole group, so that pairwise judges fit the same interface."""

    @property
    def name(self) -> str:
        """The component's name in configs and metrics."""
        ...

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> Sequence[ComponentScore]:
        """Returns one score per rollout, in order. A failure gives `valid=False`; a bad answer never raises."""
        ...


@runtime_checkable
class PerRolloutReward(RewardFn, Protocol):
    """A component that scores each rollout independently of the others, as soon as the rollout is finished."""

    async def score_one(self, prompt: Prompt, rollout: Rollout) -> ComponentScore:
        """Scores one rollout. `settle` of all these scores equals `score` of the group."""
        ...

    def settle(self, scores: Sequence[ComponentScore]) -> Sequence[ComponentScore]:
        """Returns the group's final scores from those of all rollouts. One failure may mask the whole group here."""
        ...


@runtime_checkable
class ClosableReward(RewardFn, Protocol):
    """A component that holds connections or other things of the event loop in which it scored."""

    async def close(self) -> None:
        """Releases them; the component may score again, in another event loop too."""
        ...


@runtime_checkable
class ReportingReward(RewardFn, Protocol):
    """A component with metrics of its own."""

    def metrics(self) -> dict[str, float]:
        """Metric → value, counted since the start of the process."""
        ...


@dataclass(frozen=True)
class StreamVerdict:
    """A guard's verdict on a rollout so far: the rules that hold, and the components whose scores are still open."""

    rules: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    """Components whose score further text can still change. It is computed only while a rule holds."""


class StreamGuard(Protocol):
    """Watches one rollout while it is generated."""

    def feed(self, text: str) -> StreamVerdict:
        """Adds the next piece of text and returns the verdict. This does not depend on where the text is cut."""
        ...


@dataclass(frozen=True)
class Group:
    """A prompt group: all G rollouts of one prompt with their scores, `scores[g][component]`.

    `admitted` is the trainer's step when the group was admitted.
    """

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
    """The N sequences of one training step, concatenated, in host memory. The same on every rank.

    Per-token tensors are indexed like `tokens`. Their values on prompt tokens are 0 and unused.
    """

    tokens: torch.Tensor
    """[sum of lengths] int64: prompt then response of each sequence, one after the other."""
    offsets: torch.Tensor
    """[N + 1] int64: sequence i is tokens[offsets[i]:offsets[i + 1]]."""
    prompt_lengths: torch.Tensor
    """[N] int64: number of prompt tokens at the start of each sequence."""
    behaviour_logprobs: torch.Tensor
    """[sum of lengths] fp32: the engine's log-prob of each response token."""
    advantages: torch.Tensor
    """[N] fp32: advantage of each sequence."""
    weights: torch.Tensor
    """[N] fp32: loss weight of the sequence; 0 drops it (truncated and masked, zero variance …)."""

    def __len__(self) -> int:
        return int(self.prompt_lengths.numel())

    def lengths(self) -> list[int]:
        """Returns the number of tokens of each sequence, prompt included."""
        return (self.offsets[1:] - self.offsets[:-1]).tolist()


@dataclass(frozen=True)
class MicroBatch:
    """Sequences packed into one row for one forward pass: this rank's context-parallel share of T tokens.

    `labels[t]` is the token that position t must predict, or IGNORED_LABEL. All [T] tensors follow `tokens`.
    """

    tokens: torch.Tensor
    """[T] int64: input tokens."""
    labels: torch.Tensor
    """[T] int64: the next token, IGNORED_LABEL where no log-prob is needed."""
    positions: torch.Tensor
    """[T] int64: position ids, counted from 0 in every segment."""
    cu_seqlens: torch.Tensor
    """[S + 1] int32: bounds of the segments in the whole pack (before the context-parallel split), padding included."""
    max_seqlen: int
    """Longest segment of the whole pack, in tokens."""
    sequence_ids: torch.Tensor
    """[T] int64: index into the SequenceBatch, −1 on padding."""
    source: torch.Tensor
    """[T] int64: index of the *label* token in SequenceBatch.tokens, −1 where the label is ignored."""
    behaviour_logprobs: torch.Tensor
    """[T] fp32: the engine's log-prob of the label token; in preference optimisation the frozen initial policy's."""
    advantages: torch.Tensor
    """[T] fp32: advantage of the label's sequence."""
    weights: torch.Tensor
    """[T] fp32: loss weight of the label token, including the aggregation (token / sequence / constant).

    It is 0 on ignored labels.
    """
