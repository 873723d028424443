"""Applies the stream guard to rollouts: checks fixed positions, stops rollouts where allowed, records alarms.

The guard is evaluated only at multiples of `rollout.guard.interval` tokens. So its verdicts, and where a rollout stops,
depend on the tokens alone. They do not depend on how an engine splits its deltas, nor on kills: after a kill the guard
reads the tokens again from the start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from megatron_lwz.config.guard import GuardSection
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.rollout.engine.text import Detokenizer, StopFinder
from megatron_lwz.types import Alarm, ComponentScore, FinishReason, Group, Prompt, Rollout, StreamGuard

GuardMaker = Callable[[Prompt], StreamGuard]
GIVEN = "guard"
"""The version of a score that the guard assigned to a stopped rollout."""


class GuardedRollout:
    """A rollout during generation, watched by its guard from the first token on."""

    def __init__(
        self,
        guard: StreamGuard,
        section: GuardSection,
        *,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        ends: Collection[int],
        limit: int,
    ) -> None:
        """Takes `stops`, `ends`, `limit`: the stop strings, token ids and token count that end a rollout anyway."""
        self.alarms: list[Alarm] = []
        """The alarms so far. The last one is `stopped` once the rollout must end."""
        self._guard = guard
        self._section = section
        self._detokenizer = Detokenizer(decode)
        self._stops = StopFinder(stops)
        self._ends = ends
        self._limit = limit
        self._position = 0
        self._waiting: list[int] = []

    def take(self, tokens: Sequence[int]) -> int | None:
        """Adds the next tokens. Returns the number of tokens after which the rollout must end, None if it continues."""
        waiting, size, start = self._waiting, self._section.interval, 0
        waiting += tokens
        while len(waiting) - start >= size:
            block = waiting[start : start + size]
            start += size
            self._position += size
            if self._look(block):
                return self._position
        del waiting[:start]
        return None

    def _look(self, block: Sequence[int]) -> bool:
        safe, stop = self._stops.feed(self._detokenizer.feed(*block))
        verdict = self._guard.feed(safe)
        if not verdict.rules:
            return False
        if stop is not None or block[-1] in self._ends or self._position >= self._limit:
            return False  # the rollout ends here by itself
        given = {name: self._section.scores[name] for name in verdict.open if name in self._section.scores}
        if self._section.mode == "on" and len(given) == len(verdict.open):
            self.alarms.append(Alarm(verdict.rules[0], self._position, stopped=True, scores=given))
            return True
        known = {alarm.rule for alarm in self.alarms}
        self.alarms += [Alarm(rule, self._position) for rule in verdict.rules if rule not in known]
        return False


def given_column(name: str, rollouts: Sequence[Rollout], own: Iterable[ComponentScore]) -> list[ComponentScore]:
    """Returns the scores of component `name` for all rollouts, in order.

    `own` are the scores, in order, of those rollouts to which the guard assigned none.
    """
    scores = iter(own)
    return [
        _given(rollout.given_scores[name]) if name in rollout.given_scores else next(scores) for rollout in rollouts
    ]


def _given(value: float | None) -> ComponentScore:
    return ComponentScore(value or 0.0, valid=value is not None, version=GIVEN)


def guard_metrics(groups: Sequence[Group], section: GuardSection, limit: int) -> dict[str, float]:
    """Returns metrics of the guard's effect on the rollouts of these groups; none where it is off. Per rule, counts:

        `stopped`: rollouts stopped. `spared`: the tokens they had left of `limit`, an upper bound on the tokens saved.
        `observed`: rollouts in which the rule held and that continued. `after`: the tokens generated from there on.
        `ended_valid`: observed rollouts that were well formed at their end.

    Also `exact`: rollouts that were stopped when all their scores were determined.
    """
    if section.mode == "off":
        return {}
    kinds = ("stopped", "spared", "observed", "after", "ended_valid")
    counts = Counter({f"{rule}/{kind}": 0 for rule in section.rules for kind in kinds} | {"exact": 0})
    for group in groups:
        for rollout in group.rollouts:
            for alarm in rollout.alarms:
                if alarm.stopped:
                    counts[f"{alarm.rule}/stopped"] += 1
                    counts[f"{alarm.rule}/spared"] += limit - len(rollout.tokens)
                    counts["exact"] += not alarm.scores
                    continue
                counts[f"{alarm.rule}/observed"] += 1
                counts[f"{alarm.rule}/after"] += len(rollout.tokens) - alarm.position
                ended = rollout.finish_reason is not FinishReason.GUARD
                counts[f"{alarm.rule}/ended_valid"] += ended and parse_rollout(group.prompt, rollout).valid
    return {f"rollout/guard/{name}": float(count) for name, count in counts.items()}
