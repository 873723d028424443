"""What tests of rollouts ask for and how they rate it: prompts, a reward that anyone can check, held-out rollouts."""

from __future__ import annotations

from megatron_lwz.config.pool import PoolSection
from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.held_out import HeldOut
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import ComponentScore, Prompt, Rollout
from tests.support.synthetic_engine import TOKEN, CharTokenizer
from tests.support.waiting import wait_for


class LengthOfText:
    """A reward that anyone can check."""

    name = "letters"

    async def score(self, prompt: Prompt, rollouts: list[Rollout]) -> list[ComponentScore]:
        return [
            ComponentScore(float(len(rollout.text)), details={"letters": len(rollout.text)}) for rollout in rollouts
        ]


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", text=f"prompt {i}", extra={"row": i}) for i in range(count)]


def held_out(journal: Journal, rewards=None) -> HeldOut:
    section = RolloutSection(max_new_tokens=200, commit_interval=0.05, concurrency=16, retries=1)
    return HeldOut(
        journal,
        [LengthOfText()] if rewards is None else rewards,
        tokenizer=CharTokenizer(),
        render=lambda prompt: prompt.text + "|",
        section=section,
        seed=7,
    )


def pool(url: str) -> EnginePool:
    section = PoolSection(probe_interval=0.1, wait=0.3)
    return EnginePool([EngineClient(url, TOKEN, timeout=30.0)], concurrency=16, section=section)


def wait_for_tokens(controller: RolloutController, count: int, *, seconds: float = 120.0) -> None:
    """Returns when the controller has received that many tokens."""
    wait_for(lambda: controller.metrics()["rollout/total_tokens"] >= count, seconds=seconds, what=f"{count} tokens")
