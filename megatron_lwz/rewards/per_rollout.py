"""What components have in common that look at one rollout at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from megatron_lwz.types import ComponentScore, Prompt, Rollout


class PerRollout:
    """Gives a component that scores each rollout for itself what `types.PerRolloutReward` asks."""

    @abstractmethod
    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> Sequence[ComponentScore]:
        """As of `types.RewardFn`."""

    async def score_one(self, prompt: Prompt, rollout: Rollout) -> ComponentScore:
        """The score of one rollout, without regard to its group."""
        (score,) = await self.score(prompt, [rollout])
        return score

    def settle(self, scores: Sequence[ComponentScore]) -> Sequence[ComponentScore]:
        """The group's column out of its rollouts' scores: here those."""
        return scores
