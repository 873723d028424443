"""Warns when the engines' log-probs do not fit the trainer's, or when a policy runs away from itself within a batch.

Both sides compute the log-prob of each sampled token. In exact arithmetic with the same weights they are equal. A mean
difference beyond rounding means other weights, another temperature, a wrong kernel, or numbers made up by the engine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from megatron_lwz.distributed import groups

log = logging.getLogger(__name__)

FIRST_STEPS = 5
"""Number of the run's own first steps that later ones are compared with."""
GROWTH = 5.0
"""A mean difference this many times the largest of the first steps is too much …"""
FLOOR = 1e-4
"""… unless it is below this, in nats per token: no weight in the loss changes by more than 0.01 %."""
STALE = 10.0
"""Factor on the bound for steps that train on tokens of older weights, whose log-probs differ for that reason too."""
RATIO = 100.0
"""Bound on the largest policy / old of a step: several updates of one batch have moved some token that far."""


class MismatchAlarm:
    """Looks at the metrics of each step, and says once what is wrong until it is well again. All ranks agree.

    `bound` (`grpo.mismatch_alarm`): the largest mean |log old − log behaviour| in nats per token; None: no alarm.
    """

    def __init__(self, bound: float | None, state: Mapping[str, Any] | None = None) -> None:
        """`state`: an earlier result of `state()`."""
        self._bound = bound
        self._first: list[float] = list((state or {}).get("first", []))
        self._said: set[str] = set()

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint (JSON)."""
        return {"first": list(self._first)}

    def watch(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Returns `mismatch/alarm`, 1 or 0, for a step with these metrics; logs a warning when it begins."""
        if self._bound is None:
            return {}
        found = dict(filter(None, (self._engine(metrics, self._bound), _runaway(metrics))))
        for kind, text in found.items():
            if kind not in self._said and groups.is_rank_zero():
                log.warning("step %d: %s; `lwz replay RUN --step %d` shows the rollouts", step, text, step)
        self._said = set(found)
        return {"mismatch/alarm": float(bool(found))}

    def _engine(self, metrics: Mapping[str, float], bound: float) -> tuple[str, str] | None:
        value = metrics["mismatch/difference"]
        if metrics["trained_tokens"] == 0 or not math.isfinite(value):  # nothing was trained, or the update is refused
            return None
        what = f"the engines' log-probs differ from the trainer's by {value:.2g} nats per token in the mean"
        stale = metrics["rollout/token_staleness"] > 0
        if value > bound * (STALE if stale else 1.0):
            also = f" × {STALE:g} for tokens of older weights" if stale else ""
            return (
                "engine",
                f"{what}, over grpo.mismatch_alarm = {bound:g}{also}: check the engines (docs/reliability.md)",
            )
        if stale:
            return None
        usual = max(self._first, default=math.inf)
        if value > max(FLOOR, GROWTH * usual):
            text = f"{what}; in the run's first steps it was {usual:.2g} at most: do the engines have its weights?"
            return "engine", f"{text} (docs/reliability.md)"
        if len(self._first) < FIRST_STEPS:
            self._first.append(value)
        return None


def _runaway(metrics: Mapping[str, float]) -> tuple[str, str] | None:
    largest = metrics["ratio/max"]
    if not largest > RATIO:
        return None
    return "ratio", f"the policy's probability of a token is {largest:.3g} times that before the batch's updates"
