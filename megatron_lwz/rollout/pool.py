"""The engines of a run: assigns rollouts to them, and pushes weights to all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from megatron_lwz.config.pool import PoolSection
from megatron_lwz.http.retry import Failure, RequestFailure
from megatron_lwz.rollout import weight_routes
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.engine_list import EngineList
from megatron_lwz.rollout.health import AWAY, Health
from megatron_lwz.rollout.roster import EngineAction, Pushed, Roster
from megatron_lwz.rollout.slots import Member
from megatron_lwz.rollout.watch import Keeper, Watch
from megatron_lwz.types import WeightVersion

log = logging.getLogger(__name__)


class EnginePool:
    """Leases slots to one event loop. The other methods may be called from any thread that runs no loop.

    `concurrency`: rollouts per engine. `check` checks an engine that joins during the run; it raises EngineError if the
    engine's settings do not fit. `listed` is a file of engines that may change, and a function that makes their
    clients. `keeper` restarts the engine that the run itself started.
    """

    def __init__(
        self,
        clients: Sequence[EngineClient],
        *,
        concurrency: int,
        section: PoolSection | None = None,
        check: EngineAction | None = None,
        listed: tuple[EngineList, Callable[[str], EngineClient]] | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self._check = check
        self._keeper = keeper
        self._roster = Roster(section or PoolSection(), concurrency, listed)
        self._watch = Watch(self._roster, check, keeper)
        for client in clients:
            self._roster.add(client, up=True)
        self._roster.read_list(up=True)

    @property
    def clients(self) -> list[EngineClient]:
        """Clients of all engines, in the order in which the engines became known."""
        return [member.client for member in self._roster.members]

    @asynccontextmanager
    async def lease(self, group: int, avoided: EngineClient | None = None) -> AsyncIterator[EngineClient]:
        """Leases a slot on an engine for one request of a rollout of this group. Waits for a slot, in order.

        It is not the `avoided` engine while another one is up.
        A RequestFailure inside the block counts against the engine's health. Raises RequestFailure also if the engine
        is given up during the request, and EngineError if no engine returned within `pool.wait`.
        """
        self._watch.start()
        member = await self._roster.slots.take(group, avoided)
        scope = asyncio.timeout(None)
        try:
            async with scope:
                member.scopes.add(scope)
                yield member.client
            member.health.request_done()
            member.restarts = 0
        except RequestFailure as failure:
            with self._roster.lock:
                member.health.request_failed(failure.kind)
            member.wake.set()
            raise
        except TimeoutError:
            if not scope.expired():
                raise
            advice = "is given up: it does not answer, or lacks the weights"
            raise RequestFailure(member.client.url, advice, Failure.CONNECTION) from None
        finally:
            member.scopes.discard(scope)
            self._roster.slots.give(member)

    async def close(self) -> None:
        """Stops the watch and closes all connections."""
        await self._watch.stop()
        await asyncio.gather(*(client.close() for client in self.clients))

    def twin(self) -> EnginePool:
        """Returns a pool of the same engines, with the same weights, for another event loop."""
        pool = EnginePool(
            [client.twin() for client in self.clients],
            concurrency=self._roster.concurrency,
            section=self._roster.section,
        )
        pool._roster.weights = self._roster.weights
        for mine, its in zip(self._roster.members, pool._roster.members, strict=False):
            its.weights, its.client.version = mine.weights, mine.client.version
        return pool

    def meet(self) -> None:
        """Checks all engines. Raises EngineError if one does not fit, or if none answers.

        Engines that do not answer may join later.
        """
        if self._check is None:
            return
        answers = self._on(self._roster.members, self._check)
        failed = [(member, error) for member, error in answers if error is not None]
        for _, error in failed:
            if error.kind not in AWAY or len(failed) == len(answers):
                raise error
        for member, error in failed:
            log.warning("%s; the run begins without it", error)
            member.new, member.health = True, Health(self._roster.section, up=False)

    def push_weights(self, path: Path, version: WeightVersion) -> None:
        """Makes every engine pause, load the folder, take the version's name and resume its requests."""
        self.push(version, partial(load_folder, path=path, version=version), folder=path)

    def push(self, version: WeightVersion, give: EngineAction, *, folder: Path | None = None) -> None:
        """Calls `give` for every engine, which gives it these weights.

        An engine that fails is out, and gets the weights before its next rollout. Raises RequestFailure if all engines
        fail and one of them answered with the reason, or if no engine was reachable at the first push.
        """
        self._push(Pushed(version, give, folder), lambda members: self._on(members, give))

    def push_together(self, version: WeightVersion, send: Callable[[Sequence[EngineClient]], None]) -> None:
        """Calls `send` once to give these weights to all engines that answer, including those that are out.

        An engine that joins or restarts afterwards must wait for the next push. Raises the errors of `send`, and
        RequestFailure as `push` does. `send` is not called if no engine answers.
        """

        async def wait_for_next(client: EngineClient) -> None:
            advice = f"lacks weights {version}, which are sent to all engines at once: it gets those of the next update"
            raise RequestFailure(client.url, advice, Failure.SERVER)

        def send_to_all(members: Sequence[Member]) -> list[tuple[Member, RequestFailure | None]]:
            known = [member for member in self._roster.members if not member.new and not member.leaving]
            answers = self._on(known, lambda client: client.probe())
            answering = [member.client for member, error in answers if error is None]
            if answering:
                send(answering)
            return [(member, error) for member, error in answers if error is None or member in members]

        self._push(Pushed(version, wait_for_next, None), send_to_all)

    def _push(
        self, weights: Pushed, give: Callable[[Sequence[Member]], list[tuple[Member, RequestFailure | None]]]
    ) -> None:
        with self._roster.push() as members:
            answers = give(members)
            failed = [error for _, error in answers if error is not None]
            if failed and len(failed) == len(answers):
                first = self._roster.weights is None and self._keeper is None
                for error in failed:
                    if first or error.kind not in AWAY:
                        raise error
            self._roster.pushed(weights, answers)
        self._watch.wake()

    def set_version(self, version: WeightVersion) -> None:
        """Sets the version of engines whose streams do not name the weights that generated a token."""
        with self._roster.lock:
            for member in self._roster.members:
                if self._roster.weights is None or member.weights == version:
                    member.client.version = version

    def weight_checksum(self) -> dict[str, str]:
        """Returns URL → checksum (hex) of each engine's weights. Engines that do not answer are left out."""
        sums: dict[str, str] = {}

        async def ask(client: EngineClient) -> None:
            sums[client.url] = await client.weight_checksum()

        self._on_all(ask)
        return sums

    def wake(self, part: str) -> None:
        """Makes sleeping engines allocate memory again, for `weights` or for the `kv_cache`."""
        self._on_all(partial(weight_routes.wake_sleeper, part=part))

    def sleep(self) -> None:
        """Makes every engine release its GPU memory. No request may be running."""
        self._on_all(weight_routes.sleep)

    def name_weights(self, url: str, version: WeightVersion) -> None:
        """Sets the version that marks the tokens of one engine from now on."""
        self._client(url).version = version

    def read_up(self, url: str, since: float) -> None:
        """Returns when everything is read that one engine, paused at `since` (monotonic seconds), had sent."""
        asyncio.run(self._client(url).tracker.read_up(since))

    def _client(self, url: str) -> EngineClient:
        return {client.url: client for client in self.clients}[url]

    def _on_all(self, action: EngineAction) -> None:
        """Runs the action on every engine that is not out, all at once.

        Raises RequestFailure. Engines that do not answer are left out.
        """
        there = [member for member in self._roster.members if not member.out]
        for _, failure in self._on(there, action):
            if failure is not None and failure.kind not in AWAY:
                raise failure

    def metrics(self) -> dict[str, float]:
        """Returns the engines' current metrics; `total_…` count since the start of this process.

        Per engine if there are several.
        """
        with self._roster.lock:
            members = list(self._roster.members)
        up = [member for member in members if not member.out]
        uses = [member.load.kv_use for member in up if member.load is not None]
        found = {
            "engines": len(members),
            "engines_up": len(up),
            "engines_leaving": sum(member.leaving for member in members),
            "concurrency_limit": sum(member.limit.value for member in up),
            "total_engines_lost": self._roster.counters["engines_lost"],
            "total_engine_restarts": self._roster.counters["engine_restarts"],
        } | ({"kv_use": sum(uses) / len(uses), "kv_use/max": max(uses)} if uses else {})
        for member in members if len(members) > 1 else ():
            found |= {
                f"engine{member.number}/up": float(not member.out),
                f"engine{member.number}/limit": member.limit.value,
                f"engine{member.number}/running": member.in_use,
            } | ({f"engine{member.number}/kv_use": member.load.kv_use} if member.load is not None else {})
        return {f"rollout/{name}": float(value) for name, value in found.items()}

    def _on(self, members: Sequence[Member], action: EngineAction) -> list[tuple[Member, RequestFailure | None]]:
        """Runs the action on all these engines at once. Returns each engine's failure, None if it succeeded."""

        async def act(member: Member) -> RequestFailure | None:
            async with member.client.twin() as twin:
                try:
                    await action(twin)
                except RequestFailure as error:
                    return error
            return None

        async def act_on_all() -> list[RequestFailure | None]:
            return await asyncio.gather(*(act(member) for member in members))

        return list(zip(members, asyncio.run(act_on_all()), strict=True))


async def load_folder(client: EngineClient, *, path: Path, version: WeightVersion) -> None:
    """Makes an engine load a Hugging Face folder that it can read, under this name."""
    await client.pause()
    try:
        await client.reload_weights(path)
        await client.update_weight_version(str(version))
    finally:
        await client.resume()
