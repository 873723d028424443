"""Watches a pool's engines in its event loop: probes them, takes them out, gives them weights, brings them back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from megatron_lwz.errors import DataError, EngineError
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout.health import AWAY, Standing
from megatron_lwz.rollout.roster import EngineAction, Roster
from megatron_lwz.rollout.slots import Member
from megatron_lwz.types import WeightVersion

PUSH_POLL_SECONDS = 0.05
TICK_SECONDS = 1.0
Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class Keeper(Protocol):
    """Restarts an engine that the run itself started. Its methods are called inside the pool's event loop."""

    def ended(self, *, failed: bool) -> bool:
        """Returns whether its process is gone.

        With `failed` (the engine reported that it cannot continue, or does not answer) it counts as gone too.
        """
        ...

    def start_again(self, weights: Path | None) -> None:
        """Restarts it at the same address, with the weights in this folder (None: those of its first start).

        Raises EngineError.
        """
        ...

    def last_words(self) -> str:
        """Returns the end of its log, in one line."""
        ...


class Watch:
    """One task per engine, and one that reads the engines' file and measures how long no engine was available."""

    def __init__(self, roster: Roster, check: EngineAction | None, keeper: Keeper | None) -> None:
        self._roster = roster
        self._section = roster.section
        self._check = check
        self._keeper = keeper
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[Member | None, asyncio.Task[None]] = {}
        self._alone_since: float | None = None
        self._unread = ""

    def start(self) -> None:
        """Starts the tasks in the running loop, unless they run already."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._spawn(None)
            for member in self._roster.members:
                self._spawn(member)

    async def stop(self) -> None:
        """Cancels all tasks."""
        tasks, self._tasks, self._loop = list(self._tasks.values()), {}, None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Makes the watch probe engines that are not up at once. May be called from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        for member in self._roster.members:
            if member.health.standing is not Standing.UP:
                member.wake.set()

    def _spawn(self, member: Member | None) -> None:
        task = asyncio.ensure_future(self._attend(member) if member else self._tick())
        self._tasks[member] = task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the watch over the engines failed", exc_info=error)
            self._roster.slots.fail(error)

    async def _tick(self) -> None:
        while True:
            self._read_list()
            self._count_alone(time.monotonic())
            await asyncio.sleep(min(TICK_SECONDS, self._section.probe_interval))

    def _read_list(self) -> None:
        try:
            added = self._roster.read_list()
        except DataError as error:
            if str(error) != self._unread:
                self._unread = str(error)
                log.warning("%s; the engines stay as they are", error)
            return
        for member in added:
            log.warning("engine %s is new", member.client.url)
            self._spawn(member)

    def _count_alone(self, now: float) -> None:
        """Ends the wait for engines once it has lasted `pool.wait` seconds."""
        members = [member for member in self._roster.members if not member.leaving]
        if not all(member.out for member in members):
            self._alone_since = None
            return
        if self._alone_since is None:
            self._alone_since = now
            log.warning("no engine is there: rollouts wait for up to %g s", self._section.wait)
        if now - self._alone_since >= self._section.wait:
            url, trouble = (members[0].client.url, members[0].trouble) if members else ("pool", "none is listed")
            advice = (
                f"none of {len(members)} engines was there for {self._section.wait:g} s (rollout.pool.wait): {trouble}"
            )
            self._roster.slots.fail(EngineError(url, advice))

    async def _attend(self, member: Member) -> None:
        while True:
            await self._visit(member)
            if member.leaving and member.in_use == 0:
                self._roster.remove(member)
                del self._tasks[member]
                await member.client.close()
                log.warning("engine %s has left", member.client.url)
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._section.probe_interval):
                    await member.wake.wait()
            member.wake.clear()

    async def _visit(self, member: Member) -> None:
        """Probes the engine once, and acts on the result."""
        if member.dropped:
            self._move_rollouts(member)
        try:
            await self._in_time(member, member.client.probe())
        except RequestFailure as error:
            self._probe_failed(member, error)
            return
        if not member.health.probe_answered():
            return
        try:
            if member.new and self._check is not None:
                await self._check(member.client)
            member.new = False
            await self._bring_back(member)
            member.load = await self._in_time(member, member.client.load())
        except EngineError as error:
            if isinstance(error, RequestFailure) and error.kind in AWAY:
                self._probe_failed(member, error)
            else:  # it answers, but does not fit or does not accept the weights
                self._take_out(member, str(error))
            return
        if member.load is not None:
            member.limit.observe(member.load, member.in_use)
        self._roster.slots.serve()

    async def _in_time(self, member: Member, question: Coroutine[None, None, Answer]) -> Answer:
        """Returns the answer. Raises RequestFailure also if it takes longer than a probe may."""
        try:
            async with asyncio.timeout(self._section.probe_timeout):
                return await question
        except TimeoutError:
            advice = f"no answer to a probe within {self._section.probe_timeout:g} s"
            raise RequestFailure(member.client.url, advice, Failure.TIMEOUT) from None

    def _probe_failed(self, member: Member, error: RequestFailure) -> None:
        with self._roster.lock:
            lost = member.health.probe_failed(error.kind)
        if lost:
            self._roster.counters["engines_lost"] += 1
            self._move_rollouts(member)
        if member.out:
            self._say(member, str(error))
            stuck = error.kind is Failure.TIMEOUT and member.health.stuck
            self._start_again(member, failed=stuck or error.kind is Failure.SERVER)

    def _take_out(self, member: Member, why: str) -> None:
        with self._roster.lock:
            member.health.take_out()
        self._move_rollouts(member)
        self._say(member, why)

    def _say(self, member: Member, why: str) -> None:
        """Logs why the engine is out, once per reason."""
        if why != member.trouble:
            member.trouble = why
            log.warning("%s: it is out", why)

    def _move_rollouts(self, member: Member) -> None:
        member.dropped = False
        now = asyncio.get_running_loop().time()
        for scope in member.scopes:
            scope.reschedule(now)

    def _start_again(self, member: Member, *, failed: bool) -> None:
        keeper = self._keeper
        if keeper is None or not keeper.ended(failed=failed):
            return
        if member.restarts >= self._section.restarts:
            advice = f"ended {member.restarts + 1} times in a row before it finished a rollout; {keeper.last_words()}"
            self._roster.slots.fail(EngineError(member.client.url, advice))
            return
        member.restarts += 1
        self._roster.counters["engine_restarts"] += 1
        log.warning("engine %s is started again", member.client.url)
        weights = self._roster.weights
        keeper.start_again(weights.folder if weights else None)

    async def _bring_back(self, member: Member) -> None:
        """Brings the engine up with the weights that were pushed last.

        Raises RequestFailure if it does not accept them. A push, in another thread, gives weights to engines that are
        not out. An engine that is out gets them here. So an engine is marked as out before it loads weights, and comes
        back only if no push began meanwhile.
        """
        roster = self._roster
        while True:
            wanted = roster.weights
            if roster.pushing:
                await asyncio.sleep(PUSH_POLL_SECONDS)
                continue
            if wanted is not None and not await self._has(member, wanted.version):
                with roster.lock:
                    if roster.pushing or roster.weights is not wanted:
                        continue
                    member.health.lack_weights()
                self._move_rollouts(member)
                log.warning("engine %s gets weights %s", member.client.url, wanted.version)
                await wanted.give(member.client)
            with roster.lock:
                if roster.pushing or roster.weights is not wanted:
                    continue
                if wanted is not None:
                    member.weights = member.client.version = wanted.version
                if member.health.back():
                    member.trouble = ""
                    log.warning("engine %s is back", member.client.url)
                roster.slots.fail(None)
                return

    async def _has(self, member: Member, version: WeightVersion) -> bool:
        """Returns whether the engine runs these weights.

        If it does not report its weights, the last push counts while it is up.
        """
        try:
            found = await self._in_time(member, member.client.weight_version())
        except RequestFailure as failure:
            if failure.kind is not Failure.REFUSED:
                raise
            found = None
        if found is None:
            return member.weights == version and member.health.standing is Standing.UP
        return found == str(version)
