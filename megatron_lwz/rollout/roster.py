"""State that pool and watch share: the engines, and the weights that all of them should have."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_lwz.config.pool import PoolSection
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.engine_list import EngineList
from megatron_lwz.rollout.health import Health
from megatron_lwz.rollout.limits import ConcurrencyLimit
from megatron_lwz.rollout.slots import Member, Slots
from megatron_lwz.types import WeightVersion

EngineAction = Callable[[EngineClient], Awaitable[None]]
"""An action on one engine, such as giving it weights. Raises EngineError if the engine fails or does not fit."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pushed:
    """The weights that every engine should have."""

    version: WeightVersion
    give: EngineAction
    """Gives the weights, and their name, to one engine."""
    folder: Path | None
    """Folder from which a new engine process loads them, if they are in a Hugging Face folder."""


class Roster:
    """The engines of a pool and the pushed weights.

    Code that changes the members, their standing, the weights or `pushing` holds `lock` briefly.
    """

    def __init__(
        self,
        section: PoolSection,
        concurrency: int,
        listed: tuple[EngineList, Callable[[str], EngineClient]] | None,
    ) -> None:
        self.section = section
        self.concurrency = concurrency
        self.lock = threading.Lock()
        self.slots = Slots()
        self.pushing = False
        self.weights: Pushed | None = None
        self.counters: Counter[str] = Counter()
        self._listed = listed
        self._numbered = 0

    @property
    def members(self) -> list[Member]:
        """All known engines, in the order in which they became known."""
        return self.slots.members

    def add(self, client: EngineClient, *, up: bool) -> Member:
        """Adds a member. A member that is not up is checked before it gets a rollout."""
        limit = ConcurrencyLimit(self.concurrency, self.section)
        member = Member(self._numbered, client, Health(self.section, up=up), limit, new=not up)
        self._numbered += 1
        self.members.append(member)
        return member

    @contextmanager
    def push(self) -> Iterator[list[Member]]:
        """Yields the engines that should get new weights. Inside the block no engine returns with the old ones."""
        with self.lock:
            self.pushing = True
            members = [member for member in self.members if not member.out]
        try:
            yield members
        finally:
            self.pushing = False

    def pushed(self, weights: Pushed, answers: Sequence[tuple[Member, Exception | None]]) -> None:
        """Records which engines have the weights. The others are out."""
        with self.lock:
            self.weights = weights
            for member, failure in answers:
                if failure is None:
                    member.weights = member.client.version = weights.version
                    member.health.rested()
                    continue
                log.warning("%s: it is out until it has weights %s", failure, weights.version)
                self.counters["engines_lost"] += 1
                member.health.take_out()
                member.dropped = True

    def remove(self, member: Member) -> None:
        """Removes an engine."""
        with self.lock:
            self.members.remove(member)

    def read_list(self, *, up: bool = False) -> list[Member]:
        """Reads the engines' file if it changed. Returns the new engines. Raises DataError."""
        urls = self._listed[0].read() if self._listed else None
        if urls is None or self._listed is None:
            return []
        with self.lock:
            known = {member.client.url: member for member in self.members}
            for url, member in known.items():
                if member.leaving == (url in urls):
                    member.leaving = not member.leaving
                    log.warning("engine %s %s", url, "is to leave" if member.leaving else "stays")
                    member.wake.set()
            return [self.add(self._listed[1](url), up=up) for url in urls if url not in known]
