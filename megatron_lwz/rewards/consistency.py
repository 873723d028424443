"""The consistency reward, an optional component: statements of the answer that contradict each other, found by rules."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_lwz.config.sections import ConsistencyReward
from megatron_lwz.data.text.consistency import Contradiction, find_contradictions
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.rewards.judge_reasons import MOST, bound
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.types import ComponentScore, Prompt, Reason, Rollout

_AROUND = 60
"""Characters of the text on either side of a passage that a reason quotes."""


class ConsistencyComponent(PerRollout):
    """1 minus a penalty for every contradiction, not below 0; 1 for a text in which no rule finds anything to compare.

    A response without an answer gets 0. Details: `claims`, the statements that were compared, and `contradictions`. The
    reasons quote the passages.
    """

    name = "consistency"

    def __init__(self, section: ConsistencyReward) -> None:
        self._section = section

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score per rollout, always valid."""
        return [self._score_one(parse_rollout(prompt, rollout).answer or "") for rollout in rollouts]

    def _score_one(self, text: str) -> ComponentScore:
        if not text.strip():
            return ComponentScore(0.0)
        checks = self._section.checks
        claims, found = find_contradictions(text, facts="facts" in checks, calendar="calendar" in checks)
        details = {"claims": float(claims), "contradictions": float(len(found))}
        reasons, _ = bound([_reason(text, one) for one in found[:MOST]])
        return ComponentScore(max(0.0, 1 - self._section.penalty * len(found)), details=details, reasons=reasons)


def _reason(text: str, found: Contradiction) -> Reason:
    """Returns what cannot be true, and the passages that say so."""
    quotes = (text[max(0, start - _AROUND) : end + _AROUND] for start, end in found.passages)
    return found.about, " — against — ".join(f"…{' '.join(quote.split())}…" for quote in quotes)
