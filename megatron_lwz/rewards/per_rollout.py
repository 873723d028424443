"""Common part of components that score one rollout at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from megatron_lwz.types import ComponentScore, Prompt, Rollout


class PerRollout:
    """Adds the methods of `types.PerRolloutReward` to a component that scores each rollout independently."""

    @abstractmethod
    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> Sequence[ComponentScore]:
        """Returns one score per rollout, as `types.RewardFn` requires."""

    async def score_one(self, prompt: Prompt, rollout: Rollout) -> ComponentScore:
        """Returns the score of one rollout, independently of its group."""
        (score,) = await self.score(prompt, [rollout])
        return score

    def settle(self, scores: Sequence[ComponentScore]) -> Sequence[ComponentScore]:
        """Returns the group's column from its rollouts' scores: here the scores themselves."""
        return scores
