"""Progress of awaited rollouts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_lwz.rollout.drafts import GroupDraft
from megatron_lwz.rollout.writer import RolloutWriter


@dataclass(frozen=True)
class Progress:
    """Progress of the groups that a caller waits for. `tokens_per_second`: new tokens since the wait began."""

    finished: int
    rollouts: int
    tokens: int
    tokens_per_second: float


ProgressFn = Callable[[Progress], None]


class Meter:
    """Measures tokens per second since it was created."""

    def __init__(self, writer: RolloutWriter) -> None:
        self._writer = writer
        self._since = time.monotonic()
        self._before = writer.counters["tokens"]

    def measure(self, groups: Sequence[GroupDraft]) -> Progress:
        """Returns counts over `groups`, and the speed over all rollouts of the writer."""
        drafts = [draft for group in groups for draft in group.drafts]
        seconds = max(time.monotonic() - self._since, 1e-3)
        return Progress(
            finished=sum(draft.reason is not None for draft in drafts),
            rollouts=len(drafts),
            tokens=sum(len(draft.tokens) for draft in drafts),
            tokens_per_second=(self._writer.counters["tokens"] - self._before) / seconds,
        )
