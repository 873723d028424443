"""Which engine writes the next rollout: free slots, and the rollouts that wait for one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.health import Health, Standing
from megatron_lwz.rollout.limits import ConcurrencyLimit, EngineLoad
from megatron_lwz.types import WeightVersion

MOST_HOMES = 4096
"""Groups whose engine is remembered."""


@dataclass(eq=False)
class Member:
    """One engine of a pool."""

    number: int
    """Counts engines from 0, in the order in which they became known."""
    client: EngineClient
    health: Health
    limit: ConcurrencyLimit
    new: bool = False
    """Came while the run went on, or did not answer at its start: looked at before it gets a rollout."""
    leaving: bool = False
    """No longer listed: writes what it has to the end."""
    weights: WeightVersion | None = None
    """What it was last given, or found to have."""
    load: EngineLoad | None = None
    in_use: int = 0
    restarts: int = 0
    """In a row, without a finished rollout."""
    dropped: bool = False
    """Its rollouts must go elsewhere."""
    trouble: str = ""
    """Why it is out, as it was last said."""
    scopes: set[asyncio.Timeout] = field(default_factory=set)
    """One per rollout that it writes."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a probe is due at once."""

    @property
    def out(self) -> bool:
        """Neither gets rollouts nor weights until it is back."""
        return self.health.standing is Standing.OUT

    def free(self) -> bool:
        """Whether it may be given one more rollout."""
        return self.health.standing is Standing.UP and not self.leaving and self.in_use < self.limit.value

    def fullness(self) -> float:
        """The greater of used slots and used cache, as fractions."""
        return max(self.in_use / self.limit.value, self.load.kv_use if self.load else 0.0)


class Slots:
    """Used inside one event loop. Whoever changes a member's standing or limit calls `serve`."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._waiting: deque[tuple[int, asyncio.Future[Member]]] = deque()
        self._homes: OrderedDict[int, Member] = OrderedDict()
        self._error: BaseException | None = None

    async def take(self, group: int) -> Member:
        """A slot; those who wait are served in order. Raises what `fail` was given."""
        if self._error is not None:
            raise self._error
        member = None if self._waiting else self._choose(group)
        if member is None:
            future: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
            self._waiting.append((group, future))
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
        """Hands free slots to those who wait."""
        while self._waiting:
            group, future = self._waiting[0]
            if not future.done():
                member = self._choose(group)
                if member is None:
                    return
                member.in_use += 1
                future.set_result(member)
            self._waiting.popleft()

    def fail(self, error: BaseException | None) -> None:
        """Everyone who waits, or comes, hears the error; until it is taken back with None."""
        self._error = error
        while error is not None and self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)

    def _choose(self, group: int) -> Member | None:
        """The samples of a group share an engine's prefix cache while there is room; else the emptiest engine writes."""
        free = [member for member in self.members if member.free()]
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
