"""Rank 0 hands the weights to all engines at once: HTTP requests in a thread, the tensors from here."""

from __future__ import annotations

import asyncio
import base64
import math
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from torch import Tensor

from megatron_lwz.config.sections import WeightSyncSection
from megatron_lwz.errors import EngineError, LwzError
from megatron_lwz.rollout import weight_routes
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.training.weight_sync.buckets import Buckets
from megatron_lwz.training.weight_sync.channel import POLL_SECONDS, Channel, Joining
from megatron_lwz.types import WeightVersion

Answer = TypeVar("Answer")
OPENING = "joining the engines"
LAG_SECONDS = 2.0
"""Engines may answer that they have everything before this side has noticed the end of its last bucket."""
PARTING_SECONDS = 5.0
"""Patience with engines that are told that the group ends; those that do not hear of it find out at the next one."""


class Sender:
    """Joins the engines when they are not joined as they should be, and sends. Used on rank 0, from one thread.

    Raises LwzError, in one line, for everything that goes wrong. Then the group is left; engines that had begun to
    receive stay paused, for their weights are half old and half new.
    """

    def __init__(self, section: WeightSyncSection, joining: Joining) -> None:
        self._section = section
        self._joining = joining
        self._channel: Channel | None = None
        self._joined: dict[str, str] = {}
        """URL of each engine in the group → the weights that it got last."""
        self._limit = -1
        self._clients: Sequence[EngineClient] = ()
        self._receiving: Future[Any] | None = None
        self._calls = _Calls()

    def begin(self, clients: Sequence[EngineClient], buckets: Buckets) -> None:
        """Has the engines pause and wait for the buckets."""
        self._clients = clients
        try:
            if self._channel is None or buckets.limit != self._limit or not self._all_as_left():
                self._join(buckets)
            self._all(weight_routes.begin_update)
        except LwzError:
            self._give_up(resume=True)
            raise
        description = buckets.describe()
        self._receiving = self._start(lambda client: weight_routes.receive(client, description))

    def send(self, packed: Iterable[Tensor], version: WeightVersion) -> None:
        """Sends the buckets in order; returns when every engine writes with the new weights."""
        assert self._channel is not None and self._receiving is not None
        try:
            end = time.monotonic() + self._section.timeout
            for bucket in packed:
                self._channel.send(bucket)
                self._wait(self._channel.sent, end, "received a bucket")
            self._wait(self._receiving.done, end, "ready with what it received", may_end=True)
            self._receiving.result()
            self._all(lambda client: weight_routes.finish_update(client, version))
        except LwzError:
            self._give_up(resume=False)
            raise
        self._joined = {client.url: str(version) for client in self._clients}

    def close(self) -> None:
        """Leaves the group; the engines too."""
        self._give_up(resume=False)
        self._calls.close()

    def _join(self, buckets: Buckets) -> None:
        """A new group: rank 0, then each engine's GPUs in turn."""
        self._give_up(resume=False)
        self._all(weight_routes.leave)  # what an earlier run of the trainer may have left
        sizes = self._all(weight_routes.world_size)
        size, unique_id = 1 + sum(sizes), self._joining.new_id()
        ranks = {c.url: 1 + sum(sizes[:index]) for index, c in enumerate(self._clients)}
        wire = wire_format(unique_id, size, buckets, self._section)
        opening: Future[Channel] = Future()
        work = partial(_settle, opening, lambda: self._joining.open(unique_id, size))
        threading.Thread(target=work, name=OPENING, daemon=True).start()
        joining = self._start(lambda client: weight_routes.join(client, wire | {"rank_offset": ranks[client.url]}))
        self._receiving = joining
        end = time.monotonic() + self._section.timeout
        self._wait(opening.done, end, "joined", may_end=True)
        self._channel = opening.result()
        self._wait(joining.done, end, "joined", may_end=True)
        joining.result()
        self._receiving, self._limit = None, buckets.limit

    def _all_as_left(self) -> bool:
        """Whether the group is these engines, and each still has what it was sent: one that was started anew has not."""
        if {client.url for client in self._clients} != self._joined.keys():
            return False
        return self._all(lambda client: client.weight_version()) == [self._joined[c.url] for c in self._clients]

    def _wait(self, done: Callable[[], bool], end: float, what: str, *, may_end: bool = False) -> None:
        """Returns when `done`. Raises what a request raises meanwhile, and if all end although they `may_end` not yet."""
        requests, ended = self._receiving, math.inf
        while not done():
            now = time.monotonic()
            if requests is not None and requests.done():
                requests.result()
                ended = min(ended, now)
                if not may_end and now > ended + LAG_SECONDS:
                    raise EngineError(self._names(), "took fewer weights than were to be sent")
            if now > end:
                raise EngineError(self._names(), f"not {what} within {self._section.timeout:g} s (weight_sync.timeout)")
            time.sleep(POLL_SECONDS)

    def _give_up(self, *, resume: bool) -> None:
        """Leaves the group, so that nobody waits in it; with `resume` the engines go on with their old weights."""
        if self._receiving is not None:
            self._receiving.cancel()
        if self._channel is not None:
            self._channel.close()
        known = self._channel is not None or bool(self._joined)
        self._channel, self._receiving, self._joined = None, None, {}
        with suppress(LwzError):  # what led here is told, not what is lost on the way out
            if known:
                self._all(weight_routes.leave, PARTING_SECONDS)
            if resume:
                self._all(lambda client: client.resume(), PARTING_SECONDS)

    def _names(self) -> str:
        return ", ".join(client.url for client in self._clients)

    def _all(self, action: Callable[[EngineClient], Awaitable[Answer]], seconds: float | None = None) -> list[Answer]:
        """The action's answers from all engines, in order; when all are there, raises the first failure."""
        answers = self._start(action, seconds, wait_for_all=True).result()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return cast(list[Answer], answers)

    def _start(
        self,
        action: Callable[[EngineClient], Awaitable[Answer]],
        seconds: float | None = None,
        *,
        wait_for_all: bool = False,
    ) -> Future[list[Answer | BaseException]]:
        """The action on all engines at once, in the thread; the first failure ends it, unless it is to `wait_for_all`."""
        clients, limit, names = self._clients, seconds or self._section.timeout, self._names()

        async def ask(client: EngineClient) -> Answer:
            async with client.twin() as twin:
                return await action(twin)

        async def ask_all() -> list[Answer | BaseException]:
            tasks = [asyncio.ensure_future(ask(client)) for client in clients]
            try:
                async with asyncio.timeout(limit):
                    return await asyncio.gather(*tasks, return_exceptions=wait_for_all)
            except TimeoutError:
                raise EngineError(names, f"no answer within {limit:g} s (weight_sync.timeout)") from None
            finally:
                for task in tasks:
                    task.cancel()

        return self._calls.start(ask_all())


def wire_format(unique_id: bytes, size: int, buckets: Buckets, section: WeightSyncSection) -> dict[str, Any]:
    """What all engines of a group are told alike (`init_info` of vLLM); each also gets the rank of its first GPU."""
    return {
        "nccl_unique_id_b64": base64.b64encode(unique_id).decode(),
        "world_size": size,
        "packed": True,
        "packed_buffer_size_bytes": buckets.limit,
        "packed_num_buffers": section.buffers,
    }


class _Calls:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="weight transfer", daemon=True).start()

    def start(self, work: Coroutine[Any, Any, Answer]) -> Future[Answer]:
        """Begins; the future may be cancelled."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)


def _settle(future: Future[Answer], work: Callable[[], Answer]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
