"""Rank 0 sends the weights to all engines at once: HTTP requests from a thread, tensors from the calling thread."""

from __future__ import annotations

import asyncio
import base64
import logging
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

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
OPENING = "joining the engines"
LAG_SECONDS = 2.0
"""Time allowed between the engines' answer that they have everything and the end of the last bucket on this side."""
PARTING_SECONDS = 5.0
"""Longest wait for engines to confirm the end of the group. Engines that do not answer notice it at the next join."""


class Sender:
    """Joins the engines when the group is not as it should be, and sends the weights. Used on rank 0, from one thread.

    Every failure raises LwzError with a one-line text. The group is then left. Engines that had started to receive stay
    paused, because their weights are half old and half new.
    """

    def __init__(self, section: WeightSyncSection, joining: Joining) -> None:
        self._section = section
        self._joining = joining
        self._channel: Channel | None = None
        self._joined: dict[str, str] = {}
        """URL of each engine in the group → the version of the weights that it received last."""
        self._limit = -1
        self._clients: Sequence[EngineClient] = ()
        self._receiving: Future[Any] | None = None
        self._calls = _Calls()

    def begin(self, clients: Sequence[EngineClient], buckets: Buckets) -> None:
        """Makes the engines pause and wait for the buckets."""
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
        """Sends the buckets in order; returns when every engine generates with the new weights."""
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
        """Leaves the group; the engines leave it too."""
        self._give_up(resume=False)
        self._calls.close()

    def _join(self, buckets: Buckets) -> None:
        """Forms a new group: rank 0, then each engine's GPUs in turn."""
        self._give_up(resume=False)
        self._all(weight_routes.leave)  # a group of an earlier run of the trainer may still exist
        sizes = self._all(weight_routes.world_size)
        self._compare_nccl()
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

    def _compare_nccl(self) -> None:
        """Raises EngineError for an engine with another NCCL, which would refuse to join in words that name no cause."""
        ours = self._joining.nccl()
        if ours is None:
            return
        for client, theirs in zip(self._clients, self._all(weight_routes.nccl_version), strict=True):
            if theirs is None:
                log.warning("engine %s does not say which NCCL it uses; it must be the trainer's, %s", client.url, ours)
            elif theirs != ours:
                raise EngineError(
                    client.url,
                    f"uses NCCL {theirs} and the trainer {ours}, and NCCL joins equal versions only: install the vLLM of "
                    "requirements/rollout-vllm.txt, or name the engine's libnccl.so.2 in weight_sync.library",
                )

    def _all_as_left(self) -> bool:
        """Whether the group has exactly these engines, each with the version last sent.

        A restarted engine does not have it.
        """
        if {client.url for client in self._clients} != self._joined.keys():
            return False
        return self._all(lambda client: client.weight_version()) == [self._joined[c.url] for c in self._clients]

    def _wait(self, done: Callable[[], bool], end: float, what: str, *, may_end: bool = False) -> None:
        """Waits until `done` returns True; raises the error of a request that fails in the meantime.

        Also raises when all requests end before `done` is True, unless they `may_end` early. Raises EngineError at time
        `end`.
        """
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
        """Leaves the group, so that no member waits in it.

        With `resume` the engines continue with their old weights.
        """
        if self._receiving is not None:
            self._receiving.cancel()
        if self._channel is not None:
            self._channel.close()
        known = self._channel is not None or bool(self._joined)
        self._channel, self._receiving, self._joined = None, None, {}
        with suppress(LwzError):  # errors while leaving must not hide the error that led here
            if known:
                self._all(weight_routes.leave, PARTING_SECONDS)
            if resume:
                self._all(lambda client: client.resume(), PARTING_SECONDS)

    def _names(self) -> str:
        return ", ".join(client.url for client in self._clients)

    def _all(self, action: Callable[[EngineClient], Awaitable[Answer]], seconds: float | None = None) -> list[Answer]:
        """Returns the action's answers from all engines, in order.

        Waits for all of them, then raises the first failure.
        """
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
        """Starts the action on all engines at once, in the thread.

        With `wait_for_all` a failure does not end the other requests.
        """
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
    """Returns the settings that all engines of a group receive (`init_info` of vLLM).

    Each engine also receives the rank of its first GPU.
    """
    return {
        "nccl_unique_id_b64": base64.b64encode(unique_id).decode(),
        "world_size": size,
        "packed": True,
        "packed_buffer_size_bytes": buckets.limit,
        "packed_num_buffers": section.buffers,
    }


class _Calls:
    """An event loop in its own thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="weight transfer", daemon=True).start()

    def start(self, work: Coroutine[Any, Any, Answer]) -> Future[Answer]:
        """Starts the coroutine; returns a future that may be cancelled."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)


def _settle(future: Future[Answer], work: Callable[[], Answer]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
