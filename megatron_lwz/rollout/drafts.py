"""Groups during generation: the mutable counterparts of `types.Group` and `types.Rollout`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_lwz.types import Alarm, ComponentScore, FinishReason, Group, Prompt, Rollout, TokenDelta, VersionSegment

Kind = Literal["training", "evaluation"]


@dataclass
class Draft:
    """A rollout so far. `reason` is None while it is unfinished."""

    group: int
    index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[VersionSegment] = field(default_factory=list)
    reason: FinishReason | None = None
    stop: str | None = None
    text: str = ""
    alarms: tuple[Alarm, ...] = ()
    """The guard's alarms, known when the rollout is finished."""
    most_tokens: int | None = field(default=None, init=False)
    """Maximum number of tokens, if a stage of the curriculum sets one; None: rollout.max_new_tokens."""

    @property
    def id(self) -> str:
        """Identifier of the rollout, unique in the run."""
        return f"{self.group}-{self.index}"

    def extend(self, delta: TokenDelta) -> None:
        """Appends the tokens of a delta."""
        if not self.versions or self.versions[-1].version != delta.version:
            self.versions.append(VersionSegment(len(self.tokens), delta.version))
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs


@dataclass
class GroupDraft:
    """A group from admission to consumption. Evaluation groups have negative ids and are not trained on."""

    id: int
    kind: Kind
    prompt: Prompt
    prompt_tokens: tuple[int, ...]
    admitted: int
    drafts: list[Draft]
    scores: list[dict[str, ComponentScore]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether every rollout has ended."""
        return all(draft.reason is not None for draft in self.drafts)

    def scored_by(self, names: set[str]) -> bool:
        """Returns whether every rollout has a score of exactly these components."""
        return len(self.scores) == len(self.drafts) and all(set(scores) == names for scores in self.scores)

    def rollout(self, draft: Draft) -> Rollout:
        """Returns the finished rollout as an immutable Rollout. Raises ValueError if it is unfinished."""
        if draft.reason is None:
            raise ValueError(f"rollout {draft.id} is unfinished")
        return Rollout(
            id=draft.id,
            prompt_id=self.prompt.id,
            index=draft.index,
            prompt_tokens=self.prompt_tokens,
            tokens=tuple(draft.tokens),
            logprobs=tuple(draft.logprobs),
            versions=tuple(draft.versions),
            finish_reason=draft.reason,
            text=draft.text,
            stop=draft.stop,
            alarms=draft.alarms,
        )

    def freeze(self) -> Group:
        """Returns the finished group as an immutable Group. Components that did not score it are absent."""
        scores = self.scores or [{} for _ in self.drafts]
        return Group(self.id, self.prompt, tuple(map(self.rollout, self.drafts)), tuple(scores), self.admitted)
