"""Scores groups with the reward components, as early as each component can score."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType

from megatron_lwz.profiling.spans import REWARD, Recorder
from megatron_lwz.rollout.commits import Committer
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.guard import given_column
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.types import ClosableReward, ComponentScore, PerRolloutReward, RewardFn, Rollout, is_score

log = logging.getLogger(__name__)


class GroupScoring:
    """Scores one group, inside `async with`. Leaving the block cancels unfinished scoring.

    A component that scores each rollout independently is called as soon as a rollout is finished and durable, so a slow
    judge works while the other rollouts are generated. The other components are called when the group is complete. All
    scores become durable together: after a kill before that, every component is called again. A reward that fails masks
    its column; it never stops the run.
    """

    def __init__(
        self,
        group: GroupDraft,
        rewards: Sequence[RewardFn],
        journal: Journal,
        committer: Committer,
        spans: Recorder | None = None,
    ) -> None:
        """`spans` records every call of a component."""
        self._spans = spans or Recorder()
        self._group = group
        self._rewards = rewards
        self._journal = journal
        self._committer = committer
        self._scored = group.scored_by({reward.name for reward in rewards})
        self._early = [reward for reward in rewards if isinstance(reward, PerRolloutReward)]
        self._asked: dict[int, asyncio.Task[dict[str, ComponentScore | BaseException]]] = {}

    async def __aenter__(self) -> GroupScoring:
        for draft in self._group.drafts:
            if draft.reason is not None:  # it ended before a kill
                self.begin(draft)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._early = []  # a rollout that ends after this is not scored
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    def begin(self, draft: Draft) -> None:
        """Begins to score a rollout of the group that has ended."""
        if not self._scored and self._early:
            self._asked[draft.index] = asyncio.ensure_future(self._score_one(self._group.rollout(draft)))

    async def complete(self) -> int:
        """Completes the scores of the group, once all its rollouts are durable. Returns the number of invalid scores.

        The scores are durable at return.
        """
        if self._scored:
            return 0
        group = self._group
        rollouts = [group.rollout(draft) for draft in group.drafts]
        columns = await asyncio.gather(*(self._column(reward, rollouts) for reward in self._rewards))
        names = [reward.name for reward in self._rewards]
        group.scores = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] or [
            {} for _ in rollouts
        ]
        self._warn_of_no_scores()
        self._journal.score(group.id, group.scores)
        await self._committer.durable()
        return sum(not score.valid for scores in group.scores for score in scores.values())

    def _warn_of_no_scores(self) -> None:
        """Names a rollout whose number cannot be a score, once for each component. ComponentScore has masked it."""
        for name in self._group.scores[0] if self._group.scores else ():
            values = [scores[name].value for scores in self._group.scores]
            broken = [place for place, value in enumerate(values) if not is_score(value)]
            if broken:
                rollout, value = self._group.drafts[broken[0]].id, values[broken[0]]
                more = f", and {len(broken) - 1} more of its group" if broken[1:] else ""
                log.warning("reward %s: %r for rollout %s cannot be a score, masked%s", name, value, rollout, more)

    async def _score_one(self, rollout: Rollout) -> dict[str, ComponentScore | BaseException]:
        await self._committer.durable(urgent=False)
        early = [reward for reward in self._early if reward.name not in rollout.given_scores]
        asked = (self._ask(reward, rollout) for reward in early)
        found = await asyncio.gather(*asked, return_exceptions=True)
        return dict(zip((reward.name for reward in early), found, strict=True))

    async def _ask(self, reward: PerRolloutReward, rollout: Rollout) -> ComponentScore:
        with self._spans.span(f"{REWARD}{reward.name}", f"rollout {rollout.id}"):
            return await reward.score_one(self._group.prompt, rollout)

    async def _column(self, reward: RewardFn, rollouts: Sequence[Rollout]) -> Sequence[ComponentScore]:
        asked = [rollout for rollout in rollouts if reward.name not in rollout.given_scores]
        try:
            scores = await self._scores(reward, asked) if asked else []
            if len(scores) == len(asked):
                return given_column(reward.name, rollouts, scores)
            log.error("reward %s gave %d scores for %d rollouts", reward.name, len(scores), len(asked))
        except Exception:
            log.exception("reward %s failed on group %d", reward.name, self._group.id)
        return [ComponentScore(0.0, valid=False)] * len(rollouts)

    async def _scores(self, reward: RewardFn, rollouts: Sequence[Rollout]) -> Sequence[ComponentScore]:
        if not isinstance(reward, PerRolloutReward):
            with self._spans.span(f"{REWARD}{reward.name}", f"group {self._group.id}"):
                return await reward.score(self._group.prompt, rollouts)
        scores = []
        for rollout in rollouts:
            score = (await self._asked[rollout.index])[reward.name]
            if isinstance(score, BaseException):
                raise score
            scores.append(score)
        return reward.settle(scores)


async def close_rewards(rewards: Sequence[RewardFn]) -> None:
    """Closes the connections that components opened in this event loop."""
    for reward in rewards:
        if isinstance(reward, ClosableReward):
            await reward.close()
