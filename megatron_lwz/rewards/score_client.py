"""Base of the components that ask a server of scores: retries, and failures that mask scores and never stop a run."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp

from megatron_lwz.config.base import ServedSection
from megatron_lwz.decoding import OTHER_SHAPE
from megatron_lwz.distributed import environment
from megatron_lwz.errors import ConfigError
from megatron_lwz.http.json_session import JsonSession
from megatron_lwz.http.retry import Failure, RequestFailure, RetryBudget
from megatron_lwz.http.session import is_address
from megatron_lwz.types import is_score
from megatron_lwz.units import MIB

log = logging.getLogger(__name__)

Read = TypeVar("Read")

_MOST_BYTES = 32 * MIB
_LONGEST_WAIT = 30.0


class ScoreClient(JsonSession):
    """Requests scores from one route of one server. `counters` counts requests, retries, and masked scores by reason."""

    name: str
    """The component's name."""

    def __init__(self, section: ServedSection, route: str, server: str, token: str | None) -> None:
        """`server` says in an error what runs at the address. `token` None reads the variable `api_key_env`.

        Raises ConfigError.
        """
        url = section.url or ""
        if not is_address(url):
            raise ConfigError(
                f"reward.{self.name}.url", section.url, f"not an address: write http://host:port of {server}"
            )
        super().__init__(
            token if token is not None else environment.get(section.api_key_env),
            aiohttp.ClientTimeout(total=section.timeout, sock_connect=min(10.0, section.timeout)),
        )
        self._served = section
        self.address = f"{url.rstrip('/')}/{route}"
        self.counters: Counter[str] = Counter()

    def metrics(self) -> dict[str, float]:
        """Returns the counts since the start of the process."""
        return {f"{self.name}/{name}": float(count) for name, count in self.counters.items()}

    async def ask(self, body: dict[str, Any], count: int, read: Callable[[Any], Read]) -> Read | None:
        """Returns what `read` finds in the decoded answer; None after the last failure, which masks `count` scores.

        `read` raises one of OTHER_SHAPE for an answer of another shape.
        """
        section = self._served
        budget = RetryBudget(section.retries, base_seconds=section.backoff, max_seconds=_LONGEST_WAIT)
        while True:
            self.counters["requests"] += 1
            try:
                return self._read(
                    await self.post_json(self.address, body, most=_MOST_BYTES, within=f"{section.timeout:g} s"), read
                )
            except RequestFailure as failure:
                try:
                    wait = budget.spend(failure)
                except RequestFailure:
                    self.mask(failure.kind.value, count, failure)
                    return None
            self.counters["retried"] += 1
            await asyncio.sleep(wait)

    def mask(self, reason: str, count: int, failure: RequestFailure | None = None) -> None:
        """Counts scores that are missing for a reason. Only the first failure of each kind is logged."""
        if not count:
            return
        name = f"masked/{reason.replace(' ', '_')}"
        if failure is not None and not self.counters[name]:
            log.warning("reward %s, masked: %s", self.name, failure)
        self.counters[name] += count

    def _read(self, answer: Any, read: Callable[[Any], Read]) -> Read:
        try:
            return read(answer)
        except OTHER_SHAPE as error:
            raise RequestFailure(
                self.address, f"answered another shape than asked ({error!r})", Failure.CONTRACT
            ) from error


def number(value: Any) -> float | None:
    """Returns a text's score; None for a number that cannot be one, like NaN. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no score")
    return float(value) if is_score(value) else None
