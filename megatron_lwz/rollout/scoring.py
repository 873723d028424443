"""Asks every reward component for its column of a finished group."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from megatron_lwz.rollout.drafts import GroupDraft
from megatron_lwz.types import ComponentScore, RewardFn

log = logging.getLogger(__name__)


async def score_group(group: GroupDraft, rewards: Sequence[RewardFn]) -> list[dict[str, ComponentScore]]:
    """Component → score, per rollout. A reward that fails masks its column, it never stops the run."""
    rollouts = [group.rollout(draft) for draft in group.drafts]

    async def column(reward: RewardFn) -> Sequence[ComponentScore]:
        try:
            scores = await reward.score(group.prompt, rollouts)
            if len(scores) == len(rollouts):
                return scores
            log.error("reward %s gave %d scores for %d rollouts", reward.name, len(scores), len(rollouts))
        except Exception:
            log.exception("reward %s failed on group %d", reward.name, group.id)
        return [ComponentScore(0.0, valid=False)] * len(rollouts)

    columns = await asyncio.gather(*(column(reward) for reward in rewards))
    names = [reward.name for reward in rewards]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] or [{} for _ in rollouts]


async def close_rewards(rewards: Sequence[RewardFn]) -> None:
    """Ends the connections that components opened in this event loop: those that have any have a `close`."""
    for reward in rewards:
        close = getattr(reward, "close", None)
        if close is not None:
            await close()
