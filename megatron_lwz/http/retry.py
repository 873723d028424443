"""Classes of failed requests, and how often each may be tried again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from megatron_lwz.errors import EngineError


class Failure(str, Enum):
    """Why a request gave nothing; decides whether to try again."""

    CONNECTION = "connection"
    """Refused, reset, or the stream broke off."""
    TIMEOUT = "timeout"
    """Nothing came for too long."""
    SERVER = "server"
    """The server said it failed or is busy (5xx, 429)."""
    CONTRACT = "contract"
    """An answer that our contract does not know."""
    REFUSED = "refused"
    """The request itself is wrong (other 4xx): the same answer would come again."""


class RequestFailure(EngineError):
    """An EngineError with its class."""

    def __init__(self, url: str, advice: str, kind: Failure) -> None:
        super().__init__(url, advice)
        self.kind = kind


MOST = {Failure.REFUSED: 0, Failure.CONTRACT: 1}
"""Retries after failures of these classes, where nothing else is asked for: they would mostly come again."""


@dataclass
class RetryBudget:
    """How many failures in a row one piece of work may have, each class by itself. Progress resets the counts.

    `default` holds for every class, but at most MOST where that names one; `limits` says otherwise per class. Waits begin at
    `base_seconds`, or the class's `backoff`, and double up to `max_seconds`.
    """

    default: int
    limits: Mapping[Failure, int] = field(default_factory=dict)
    backoff: Mapping[Failure, float] = field(default_factory=dict)
    base_seconds: float = 0.25
    max_seconds: float = 5.0
    _spent: dict[Failure, int] = field(default_factory=dict)

    def spend(self, failure: RequestFailure) -> float:
        """Seconds to wait before the next attempt, with jitter. Raises the failure if its class's budget is spent."""
        kind = failure.kind
        spent = self._spent[kind] = self._spent.get(kind, 0) + 1
        if spent > self.limits.get(kind, min(MOST.get(kind, self.default), self.default)):
            raise failure
        longest = min(self.backoff.get(kind, self.base_seconds) * 2.0 ** (spent - 1), self.max_seconds)
        return longest * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Something new arrived: failures are counted from 0 again."""
        self._spent.clear()
