"""Classes of failed requests, and how often a request may be retried after each."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from megatron_lwz.errors import EngineError


class Failure(str, Enum):
    """Class of a failed request. It decides whether to retry."""

    CONNECTION = "connection"
    """The connection was refused or reset, or the stream ended early."""
    TIMEOUT = "timeout"
    """No data arrived within the timeout."""
    SERVER = "server"
    """The server reported a failure or is busy (5xx, 429)."""
    CONTRACT = "contract"
    """The answer does not follow the API contract."""
    REFUSED = "refused"
    """The request itself is wrong (other 4xx), so a retry would fail in the same way."""


class RequestFailure(EngineError):
    """An EngineError of a request, with its class of failure."""

    def __init__(self, url: str, advice: str, kind: Failure) -> None:
        super().__init__(url, advice)
        self.kind = kind


def no_connection(error: Exception) -> str:
    """Returns the advice for a server that cannot be reached, or whose connection broke."""
    return f"no connection ({type(error).__name__}: {error}): is it running, and is its address right?"


MOST = {Failure.REFUSED: 0, Failure.CONTRACT: 1}
"""Maximum retries after failures of these classes, unless `limits` sets another: a retry mostly fails again."""


@dataclass
class RetryBudget:
    """The number of consecutive failures that are allowed for one piece of work, counted per class.

    Progress resets the counts. `default` is the limit for every class, reduced to MOST for the classes listed there.
    `limits` overrides it per class. Waits begin at `base_seconds`, or at the class's `backoff`, and double up to
    `max_seconds`.
    """

    default: int
    limits: Mapping[Failure, int] = field(default_factory=dict)
    backoff: Mapping[Failure, float] = field(default_factory=dict)
    base_seconds: float = 0.25
    max_seconds: float = 5.0
    _spent: dict[Failure, int] = field(default_factory=dict)

    def spend(self, failure: RequestFailure) -> float:
        """Returns the seconds to wait before the next attempt, with jitter. Raises `failure` if its budget is spent."""
        kind = failure.kind
        spent = self._spent[kind] = self._spent.get(kind, 0) + 1
        if spent > self.limits.get(kind, min(MOST.get(kind, self.default), self.default)):
            raise failure
        longest = min(self.backoff.get(kind, self.base_seconds) * 2.0 ** (spent - 1), self.max_seconds)
        return longest * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Resets the failure counts to 0 after progress."""
        self._spent.clear()
