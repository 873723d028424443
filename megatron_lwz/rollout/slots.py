"""Assigns engines to rollouts: free slots, and the rollouts that wait for one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.health import Health, Standing
from megatron_lwz.rollout.limits import ConcurrencyLimit, EngineLoad
from megatron_lwz.types import WeightVersion

MOST_HOMES = 4096
"""Maximum number of groups whose engine is remembered."""


@dataclass(eq=False)
class Member:
    """One engine of a pool."""

    number: int
    """Number of the engine, from 0, in the order in which engines became known."""
    client: EngineClient
    health: Health
    limit: ConcurrencyLimit
    new: bool = False
    """Whether the engine joined during the run or did not answer at its start. It is checked before it gets a
    rollout.
    """
    leaving: bool = False
    """Whether the engine is no longer listed. It finishes the rollouts that it has."""
    weights: WeightVersion | None = None
    """Version of the weights that the engine was last given, or was found to have."""
    load: EngineLoad | None = None
    in_use: int = 0
    restarts: int = 0
    """Number of consecutive restarts without a finished rollout."""
    dropped: bool = False
    """Whether its rollouts must move to other engines."""
    trouble: str = ""
    """Reason why the engine is out, as last logged."""
    scopes: set[asyncio.Timeout] = field(default_factory=set)
    """Timeout scopes, one per rollout on the engine."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a probe is due at once."""

    @property
    def out(self) -> bool:
        """Whether the engine is out: it gets neither rollouts nor weights until it is back."""
        return self.health.standing is Standing.OUT

    @property
    def up(self) -> bool:
        """Whether the engine takes new rollouts, once it has a free slot."""
        return self.health.standing is Standing.UP and not self.leaving

    def free(self) -> bool:
        """Returns whether the engine may get one more rollout."""
        return self.up and self.in_use < self.limit.value

    def fullness(self) -> float:
        """Returns the greater of used slots and used cache, as fractions."""
        return max(self.in_use / self.limit.value, self.load.kv_use if self.load else 0.0)


class Slots:
    """The slots of all engines, for use inside one event loop.

    After changing a member's standing or limit, call `serve`.
    """

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._waiting: deque[tuple[int, EngineClient | None, asyncio.Future[Member]]] = deque()
        self._homes: OrderedDict[int, Member] = OrderedDict()
        self._error: BaseException | None = None

    async def take(self, group: int, avoided: EngineClient | None = None) -> Member:
        """Takes a slot on an engine. Waiting tasks are served in order. Raises the error that was passed to `fail`.

        The slot is on the `avoided` engine only while no other engine is up.
        """
        if self._error is not None:
            raise self._error
        member = None if self._waiting else self._choose(group, avoided)
        if member is None:
            future: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
            self._waiting.append((group, avoided, future))
            try:
                member = await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self.give(future.result())
                raise
        else:
            member.in_use += 1
        return member

    def give(self, member: Member) -> None:
        """Gives a slot back."""
        member.in_use -= 1
        member.limit.ended()
        self.serve()

    def serve(self) -> None:
        """Assigns free slots to waiting tasks. Only a task that avoids an engine may be overtaken."""
        for waiting in list(self._waiting):
            group, avoided, future = waiting
            if not future.done():
                member = self._choose(group, avoided)
                if member is None and avoided is None:
                    return
                if member is None:
                    continue
                member.in_use += 1
                future.set_result(member)
            self._waiting.remove(waiting)

    def fail(self, error: BaseException | None) -> None:
        """Raises the error in every waiting task and in later calls of `take`, until `fail(None)`."""
        self._error = error
        while error is not None and self._waiting:
            *_, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)

    def _choose(self, group: int, avoided: EngineClient | None) -> Member | None:
        """Returns the best free engine.

        The rollouts of a group share one engine's prefix cache while that engine has room. Otherwise it is the emptiest
        engine. Returns None if no engine is free.
        """
        free = [member for member in self.members if member.free()]
        if any(member.up and member.client is not avoided for member in self.members):
            free = [member for member in free if member.client is not avoided]
        if not free:
            return None
        home = self._homes.get(group)
        best = min(free, key=lambda m: (m.health.failures, m is not home, m.fullness(), m.number))
        if home is None or home not in self.members:
            self._homes[group] = best
        self._homes.move_to_end(group)
        if len(self._homes) > MOST_HOMES:
            self._homes.popitem(last=False)
        return best
