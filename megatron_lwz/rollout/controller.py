"""The rollout controller: one event loop in a thread of trainer rank 0.

It admits prompts, streams tokens from engines into the journal, asks for rewards as soon as a group is complete and
durable, and hands whole groups to the training loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.errors import LwzError
from megatron_lwz.rollout.admission import derive_seed, match_groups
from megatron_lwz.rollout.commits import Committer
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.rollout.progress import Meter, ProgressFn
from megatron_lwz.rollout.sampling import Sampler, Tokenizer
from megatron_lwz.rollout.scoring import close_rewards, score_group
from megatron_lwz.types import Group, Prompt, RewardFn, WeightVersion

POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovery:
    """What a journal held: groups that return to ready, complete ones, unfinished ones, and the tokens kept of those."""

    returned: int
    complete: int
    unfinished: int
    kept_tokens: int


class RolloutController:
    """Call its methods from the trainer's main thread. A fatal error of the loop is raised by the next call that waits.

    `render` makes a prompt's text for the policy. Each rollout's seed depends on (`seed`, group id, index) alone.
    """

    def __init__(
        self,
        pool: EnginePool,
        journal: Journal,
        rewards: Sequence[RewardFn],
        *,
        tokenizer: Tokenizer,
        render: Callable[[Prompt], str],
        section: RolloutSection,
        group_size: int,
        seed: int,
    ) -> None:
        self._pool = pool
        self._journal = journal
        self._rewards = list(rewards)
        self._tokenizer = tokenizer
        self._render = render
        self._section = section
        self._group_size = group_size
        self._seed = seed
        self._sampler = Sampler(pool, journal, tokenizer, section)
        self._dormant: dict[int, GroupDraft] = {}
        self._active: dict[int, GroupDraft] = {}
        self._ready: dict[int, Group] = {}
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._next = journal.next_id("training")
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def recover(self, step: int) -> Recovery:
        """Takes up the journal as of the checkpoint of `step`. Groups go on when their step is submitted again."""
        returned = self._journal.rewind(step)
        self._dormant = {group.id: group for group in self._journal.open_groups()}
        complete = sum(group.finished for group in self._dormant.values())
        drafts = [draft for group in self._dormant.values() for draft in group.drafts if draft.reason is None]
        kept = sum(len(draft.tokens) for draft in drafts)
        return Recovery(returned, complete, len(self._dormant) - complete, kept)

    def start(self) -> None:
        """Starts the thread; returns when its loop runs."""
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="rollouts", daemon=True)
        self._thread.start()
        started.wait()

    def set_version(self, version: WeightVersion) -> None:
        """The weights the engines run from now on (engines that name their weights in the stream do not need it)."""
        self._pool.set_version(version)

    def submit(self, step: int, prompts: Sequence[Prompt]) -> list[int]:
        """Admits prompts for a trainer step; returns their group ids. Groups the journal has for them go on instead."""
        return self._wait(self._call(self._submit(step, prompts)))

    def collect(self, step: int, count: int, *, progress: ProgressFn | None = None) -> list[Group]:
        """Blocks until `count` groups admitted for `step` are ready; the first `count` by id. They stay until consumed.

        Raises ValueError if fewer were submitted, and whatever ended the controller.
        """
        meter = Meter(self._sampler)
        while True:
            with self._changed:
                self._raise_error()
                known = [
                    group for group in self._active.values() if group.kind == "training" and group.admitted == step
                ]
                ready = sorted(group.id for group in known if group.id in self._ready)
                if len(ready) >= count:
                    return [self._ready[group] for group in ready[:count]]
                if len(known) < count:
                    raise ValueError(f"step {step} has {len(known)} groups, {count} were asked for")
                self._changed.wait(POLL_SECONDS)
            if progress is not None:
                progress(meter.measure(known))

    def mark_consumed(self, groups: Sequence[Group], step: int) -> None:
        """Training step `step` used these groups (durable at return); they leave memory."""
        self._journal.consume([group.id for group in groups], step)
        self._journal.commit()
        with self._changed:
            for group in groups:
                self._active.pop(group.id, None)
                self._ready.pop(group.id, None)

    def record_order(self, step: int, micro_batches: Any) -> None:
        """The order (any JSON value) in which a step trained its micro-batches."""
        self._journal.record_order(step, micro_batches)

    def checkpoint(self, step: int) -> None:
        """The checkpoint of `step` is complete on disk (durable at return)."""
        self._journal.mark_checkpoint(step)
        self._journal.commit()

    def metrics(self) -> dict[str, float]:
        """Counts since the start of this process; `waiting` are groups in memory that are not ready."""
        names = ("tokens", "finished", "truncated", "retried", "dropped", "failed_scores")
        counts = {f"rollout/total_{name}": float(self._sampler.counters[name]) for name in names}
        return counts | {"rollout/waiting": float(len(self._dormant) + len(self._active) - len(self._ready))}

    def close(self) -> None:
        """Stops writing; everything received is durable at return. Unfinished rollouts go on after `recover`."""
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
            self._journal.close()

    def _run(self, started: threading.Event) -> None:
        try:
            asyncio.run(self._main(started))
        except BaseException as error:
            self._fail(error)
            started.set()

    async def _main(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._committer = Committer(self._journal, self._section.commit_interval)
        self._spawn(self._committer.run())
        started.set()
        await self._stop.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.close()
        await close_rewards(self._rewards)

    async def _submit(self, step: int, prompts: Sequence[Prompt]) -> list[int]:
        known = [group for group in self._dormant.values() if group.admitted == step]
        found, left = match_groups(prompts, known, group_size=self._group_size)
        for group in left:
            log.warning("group %d of step %d is dropped: the step now asks for other prompts", group.id, step)
            self._journal.drop(group.id, "prompts changed")
            self._sampler.counters["dropped"] += 1
            del self._dormant[group.id]
        ids = []
        for prompt, recovered in zip(prompts, found, strict=True):
            if recovered is None:
                group = self._draft(prompt, step)
                self._journal.admit(group)
            else:
                group = self._dormant.pop(recovered.id)
            with self._changed:
                self._active[group.id] = group
            ids.append(group.id)
            self._spawn(self._complete(group))
        return ids

    async def _complete(self, group: GroupDraft) -> None:
        """Writes what is missing, then scores; each only counts when it is on disk."""
        missing = [draft for draft in group.drafts if draft.reason is None]
        await asyncio.gather(*(self._sampler.write(group, draft, self._seed_of(group, draft)) for draft in missing))
        if missing:
            await self._committer.durable()
        if not group.scored_by({reward.name for reward in self._rewards}):
            group.scores = await score_group(group, self._rewards)
            self._sampler.counters["failed_scores"] += sum(
                not score.valid for scores in group.scores for score in scores.values()
            )
            self._journal.score(group.id, group.scores)
            await self._committer.durable()
        with self._changed:
            self._ready[group.id] = group.freeze()
            self._changed.notify_all()

    def _draft(self, prompt: Prompt, step: int) -> GroupDraft:
        group, self._next = self._next, self._next + 1
        tokens = tuple(self._tokenizer.encode(self._render(prompt)))
        drafts = [Draft(group, index) for index in range(self._group_size)]
        return GroupDraft(group, "training", prompt, tokens, step, drafts)

    def _seed_of(self, group: GroupDraft, draft: Draft) -> int:
        return derive_seed(self._seed, group.id, draft.index)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _call(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._loop is None or self._thread is None:
            work.close()
            raise RuntimeError("the controller is not running: call start() first")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, future: Future[Any]) -> Any:
        while True:
            try:
                return future.result(POLL_SECONDS)
            except CancelledError:
                self._raise_error()
                raise LwzError("the rollout controller was closed while rollouts were awaited") from None
            except TimeoutError:
                if future.done():
                    raise
                self._raise_error()
