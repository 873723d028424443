"""The rollout controller: an event loop that keeps engines and rewards busy and passes groups to training.

    prompts         Intake.prompt_of(n), in a fixed order
       │ admission  `_refill`, while Admission has free slots; a group that fails or is filtered frees its slot
       ▼
    _drafts         admitted groups: one task `_complete` each
       │ writing    RolloutWriter: every rollout waits for a slot of the EnginePool, then streams into its draft
       │ scoring    GroupScoring: each rollout once it is durable; components of a whole group when it is complete
       │ commits    both queue rows in the Journal; the Committer flushes them for all tasks that wait in `durable`
       ▼
    _ready          complete groups, durable
       │ `stream`   Admission.take: the groups of this step, in its order; they stay until `mark_consumed`
       ▼
    training loop

The loop runs in its own thread: in trainer rank 0 with `rollout.controller: thread`, in the rollout process with
`process`. Another thread of the same process calls the public methods.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.errors import LwzError
from megatron_lwz.http.retry import RequestFailure
from megatron_lwz.profiling.spans import Recorder
from megatron_lwz.rollout.admission import Intake, derive_seed, misfit
from megatron_lwz.rollout.commits import Committer
from megatron_lwz.rollout.drafts import Draft, GroupDraft
from megatron_lwz.rollout.guard import GuardMaker
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.length_book import FAILED, ZERO_VARIANCE
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.rollout.progress import Meter, ProgressFn
from megatron_lwz.rollout.recovery import Recovery
from megatron_lwz.rollout.scoring import GroupScoring, close_rewards
from megatron_lwz.rollout.writer import RolloutWriter, Tokenizer
from megatron_lwz.types import Group, Prompt, RewardFn, WeightVersion

POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


class RolloutController:
    """Generates and scores a run's groups in an event loop of its own, in a thread of its own.

    Call its methods from one other thread. After a fatal error of the loop, the next call that waits raises that error.
    `intake` defines the prompts, when groups begin, and which groups make a step's batch. `render` makes a prompt's
    text for the policy.
    """

    def __init__(
        self,
        pool: EnginePool,
        journal: Journal,
        rewards: Sequence[RewardFn],
        *,
        intake: Intake,
        tokenizer: Tokenizer,
        render: Callable[[Prompt], str],
        section: RolloutSection,
        guard: GuardMaker | None = None,
    ) -> None:
        self._pool = pool
        self._journal = journal
        self._rewards = list(rewards)
        self._intake = intake
        self._admission = intake.admission
        self._curriculum = intake.curriculum
        self._tokenizer = tokenizer
        self._render = render
        self._section = section
        self.spans = Recorder()
        """What engines and rewards do."""
        self._writer = RolloutWriter(pool, journal, tokenizer, section, guard, self.spans)
        self._drafts: dict[int, GroupDraft] = {}
        self._ready: dict[int, Group] = {}
        self._changed = threading.Condition()
        """Guards admission, curriculum, drafts and ready groups."""
        self._error: BaseException | None = None
        self._next = journal.next_id("training")
        self._marked: Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def recover(self, step: int) -> Recovery:
        """Resumes the journal from the checkpoint of `step`.

        Groups resume when the step of their admission comes again. Steps that were trained after the checkpoint will
        take the same groups again.
        """
        returned = self._journal.rewind(step)
        if self._curriculum is not None:
            self._curriculum.restore(self._journal.history(step), step)
        for group in self._journal.open_groups():
            found = misfit(group, self._intake.stored(group), self._intake.group_size)
            if found is None:
                self._limit(group)
                self._drafts[group.id] = group
                self._admission.restore(group.id, group.admitted)
            else:
                reason, why = found
                log.warning("group %d is dropped: %s", group.id, why)
                self._journal.drop(group.id, reason)
                self._writer.counters["dropped"] += 1
        self._admission.replay = self._journal.orders(after=step)
        complete = sum(group.finished for group in self._drafts.values())
        drafts = [draft for group in self._drafts.values() for draft in group.drafts if draft.reason is None]
        kept = sum(len(draft.tokens) for draft in drafts)
        return Recovery(returned, complete, len(self._drafts) - complete, kept)

    def start(self) -> None:
        """Starts the thread. Returns when its loop runs."""
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="rollouts", daemon=True)
        self._thread.start()
        started.wait()

    def set_version(self, version: WeightVersion) -> None:
        """Sets the version of the weights the engines run from now on.

        Engines whose streams name their weights do not need it.
        """
        self._pool.set_version(version)

    def begin(self, step: int) -> None:
        """Begins training step `step`, whose weights the engines now have: as many groups begin as are allowed."""
        self._wait(self._call(self._begin(step)))

    def collect(self, step: int, *, progress: ProgressFn | None = None) -> list[Group]:
        """Returns the groups for training step `step`. Blocks until they are ready. They stay until consumed.

        Raises the error that ended the controller, if there was one.
        """
        (groups,) = self.stream(step, least=self._admission.batch, progress=progress)
        return groups

    def stream(self, step: int, *, least: int, progress: ProgressFn | None = None) -> Iterator[list[Group]]:
        """Yields the groups of `collect` in parts, each as soon as it is certain.

        Each part has at least `least` groups; the last part has those that remain.
        """
        meter = Meter(self._writer)
        given: set[int] = set()
        self.begin(step)
        while len(given) < self._admission.batch:
            with self._changed:
                self._raise_error()
                taken = self._admission.take()
                part = [group for group in taken or self._admission.certain() if group not in given]
                if taken is None and len(part) < least:
                    part = []
                    self._changed.wait(POLL_SECONDS)
                groups = [self._ready[group] for group in part]
                awaited = [self._drafts[group] for group in self._admission.pending()[: self._admission.batch]]
            if groups:
                given.update(part)
                yield groups
            elif progress is not None:
                progress(meter.measure(awaited))

    def mark_consumed(self, groups: Sequence[Group], step: int) -> None:
        """Records that training step `step` used these groups, in this order, and frees their memory.

        Durable after `settle`.
        """
        ids = [group.id for group in groups]
        with self._changed:
            for used in groups:
                self._note_outcome(used, step)
        self._journal.consume(ids, step)
        self._journal.record_order(step, ids)
        self._marked = self._call(self._committer.durable())
        with self._changed:
            self._admission.trained(ids)
            for group in ids:
                del self._drafts[group], self._ready[group]

    def settle(self) -> None:
        """Returns when all marks are durable. Call it before a checkpoint of that step may be complete."""
        if self._marked is not None:
            self._wait(self._marked)

    def checkpoint(self, step: int) -> None:
        """Records that the checkpoint of `step` is complete on disk."""
        self._journal.mark_checkpoint(step)

    def metrics(self) -> dict[str, float]:
        """Returns counts since the start of this process.

        `waiting` is the number of admitted groups that are not ready.
        """
        names = ["tokens", "finished", "truncated", "stopped", "retried", "moved", "held_back", "dropped", "refilled"]
        names += ["failed_scores", "failed_groups"]
        counts = {f"rollout/total_{name}": float(self._writer.counters[name]) for name in names}
        with self._changed:
            return counts | self._pool.metrics() | {"rollout/waiting": float(len(self._drafts) - len(self._ready))}

    def curriculum_metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """Returns the metrics `curriculum/…` of the step that trains on these groups; none without a curriculum."""
        with self._changed:
            return self._curriculum.metrics(groups) if self._curriculum is not None else {}

    def halt(self) -> None:
        """Ends all rollouts under way. What was received becomes durable as ever, and marks can still be set."""
        self._wait(self._call(self._halt()))

    def close(self) -> None:
        """Stops generation. Everything received is durable at return. Unfinished rollouts resume after `recover`."""
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
        self._commits = self._spawn(self._committer.run())
        started.set()
        await self._stop.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.close()
        await close_rewards(self._rewards)

    async def _halt(self) -> None:
        tasks = self._tasks - {self._commits}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self, step: int) -> None:
        with self._changed:
            if self._curriculum is not None:
                self._journal.note_stage(self._curriculum.begin(step))
            woken = self._admission.advance(step)
        for group in woken:
            self._spawn(self._complete(self._drafts[group]))
        self._refill()

    def _refill(self) -> None:
        """Admits groups for all free slots."""
        with self._changed:
            new = [self._draft() for _ in range(self._admission.slots())]
            for group in new:
                self._admission.admit(group.id)
                self._drafts[group.id] = group
        for group in new:
            self._journal.admit(group)
            self._spawn(self._complete(group))

    async def _complete(self, group: GroupDraft) -> None:
        """Generates the group's missing rollouts and scores them. Each counts only when it is on disk."""
        seed_of = partial(derive_seed, self._intake.seed, group.id)
        try:
            async with GroupScoring(group, self._rewards, self._journal, self._committer, self.spans) as scoring:
                if await self._writer.write_group(group, seed_of, scoring.begin):
                    await self._committer.durable()
                self._writer.counters["failed_scores"] += await scoring.complete()
        except RequestFailure as failure:
            if self._writer.counters["failed_groups"] >= self._section.failed_groups:
                raise
            log.warning("group %d is given up: %s", group.id, failure)
            with self._changed:
                self._admission.give_back(group.id)
                self._journal.drop(group.id, FAILED)
            self._replace(group, "failed_groups")
            return
        done = group.freeze()
        barren = self._admission.refills > 0 and self._intake.barren(done)
        with self._changed:  # one view of the step: an outcome counts for the steps after it
            kept = not (barren and self._admission.filter(group.id))
            if kept:
                self._admission.finish(group.id)
                self._ready[group.id] = done
                self._changed.notify_all()
            else:
                self._note_outcome(done)
                self._journal.drop(group.id, ZERO_VARIANCE)
        if not kept:
            self._replace(group, "refilled")

    def _replace(self, group: GroupDraft, counter: str) -> None:
        """Removes a group that has freed its slot. It is never trained on, and another group begins."""
        self._writer.counters[counter] += 1
        with self._changed:
            del self._drafts[group.id]
        self._refill()

    def _draft(self) -> GroupDraft:
        group, self._next = self._next, self._next + 1
        if self._curriculum is None:
            prompt = self._intake.prompt_of(group)
        else:
            prompt, draw = self._curriculum.draw(group)
            self._journal.note_draw(draw)
        tokens = tuple(self._tokenizer.encode(self._render(prompt)))
        drafts = [Draft(group, index) for index in range(self._intake.group_size)]
        draft = GroupDraft(group, "training", prompt, tokens, self._admission.step, drafts)
        self._limit(draft)
        return draft

    def _limit(self, group: GroupDraft) -> None:
        """Gives the rollouts of a group the token limit of the stage that it was drawn in."""
        if self._curriculum is not None:
            for draft in group.drafts:
                draft.most_tokens = self._curriculum.limit(group.id)

    def _note_outcome(self, group: Group, step: int | None = None) -> None:
        """Records what a group says to the curriculum. `step`: the one that trained on it; None: it is replaced."""
        if self._curriculum is not None and (outcome := self._curriculum.outcome(group, step)) is not None:
            self._journal.note_outcome(outcome)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

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
