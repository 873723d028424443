"""Rollouts on held-out prompts: written by one version of the weights, journaled, never trained on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.rollout.admission import derive_seed, match_groups
from megatron_lwz.rollout.commits import Committer
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.rollout.progress import Meter, Progress
from megatron_lwz.rollout.scoring import GroupScoring, close_rewards
from megatron_lwz.rollout.writer import RolloutWriter, Tokenizer
from megatron_lwz.types import Group, Prompt, RewardFn, WeightVersion


class HeldOut:
    """Has held-out prompts written to; what an interrupted evaluation had written is gone on with.

    Only one evaluation is written at a time. `render` makes a prompt's text for the policy. A rollout's seed depends on
    (`seed`, prompt, index) alone: the same prompts get the same seeds in every evaluation of a run.
    """

    def __init__(
        self,
        journal: Journal,
        rewards: Sequence[RewardFn],
        *,
        tokenizer: Tokenizer,
        render: Callable[[Prompt], str],
        section: RolloutSection,
        seed: int,
    ) -> None:
        self._journal = journal
        self._rewards = list(rewards)
        self._tokenizer = tokenizer
        self._render = render
        self._section = section
        self._seed = seed
        self._next = journal.next_id("evaluation")
        self._progress: Callable[[], Progress] | None = None

    def take_up(
        self, prompts: Sequence[Prompt], samples: int, version: WeightVersion
    ) -> tuple[list[GroupDraft], WeightVersion]:
        """The groups of the evaluation after `version.step` updates, and the version that their tokens are to name.

        Groups that the journal has go on where the same weights (by checksum) wrote them, under the name that those had
        then; the others are dropped.
        """
        same: list[GroupDraft] = []
        for group in self._journal.open_groups("evaluation", admitted=version.step):
            if all(known.checksum == version.checksum for known in _versions([group])):
                same.append(group)
            else:
                self._journal.drop(group.id, "other weights")
        found, left = match_groups(prompts, same, group_size=samples)
        for group in left:
            self._journal.drop(group.id, "prompts changed")
        groups = [
            known or self._admit(prompt, samples, version.step) for prompt, known in zip(prompts, found, strict=True)
        ]
        return groups, next(iter(_versions(groups)), version)

    async def write(self, groups: Sequence[GroupDraft], pool: EnginePool) -> list[Group]:
        """Returns when every group is written and scored, both on disk. Raises EngineError, DataError.

        The pool's and the rewards' connections are closed in the end.
        """
        writer = RolloutWriter(pool, self._journal, self._tokenizer, self._section)
        meter = Meter(writer)
        self._progress = lambda: meter.measure(groups)
        committer = Committer(self._journal, self._section.commit_interval)
        commits = asyncio.ensure_future(committer.run())
        work = asyncio.gather(*(self._complete(group, writer, committer) for group in groups))
        both: set[asyncio.Future] = {commits, work}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if commits.done():
                commits.result()  # the disk refuses: nothing more can become durable
            return list(work.result())
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            await pool.close()
            await close_rewards(self._rewards)

    def progress(self) -> Progress | None:
        """How far the evaluation that was begun last is; from any thread."""
        return self._progress() if self._progress is not None else None

    def _admit(self, prompt: Prompt, samples: int, step: int) -> GroupDraft:
        tokens = tuple(self._tokenizer.encode(self._render(prompt)))
        drafts = [Draft(self._next, index) for index in range(samples)]
        group = GroupDraft(self._next, "evaluation", prompt, tokens, step, drafts)
        self._next -= 1
        self._journal.admit(group)
        return group

    async def _complete(self, group: GroupDraft, writer: RolloutWriter, committer: Committer) -> Group:
        seed_of = partial(derive_seed, self._seed, f"evaluation {group.prompt.id}")
        async with GroupScoring(group, self._rewards, self._journal, committer) as scoring:
            if await writer.write_group(group, seed_of, scoring.begin):
                await committer.durable()
            await scoring.complete()
        return group.freeze()


def _versions(groups: Sequence[GroupDraft]) -> list[WeightVersion]:
    """The versions that wrote tokens of these groups, without repeats."""
    drafts = (draft for group in groups for draft in group.drafts)
    return list(dict.fromkeys(segment.version for draft in drafts for segment in draft.versions))
