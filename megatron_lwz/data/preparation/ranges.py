"""Rules for length ranges (LongWriter-Zero, section 3.1), and a check that a range fits a token budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_lwz.data.text.length_request import LengthRequest, Unit
from megatron_lwz.types import LengthRange

Trouble = Literal[
    "[0, 0]: impossible or oversized",
    "bounds below 0 or in the wrong order",
    "longer than the largest length",
    "wider than allowed",
]


@dataclass(frozen=True)
class Settled:
    """A range that obeys the rules, or the rule it breaks. `rounded` and `wide` are flags to count as warnings."""

    range: LengthRange | None
    trouble: Trouble | None = None
    rounded: bool = False
    wide: bool = False


@dataclass(frozen=True)
class RangeRules:
    """Rules for ranges, in units of the length reward. `step`, `largest` and `widest` are the paper's (B).

    `step` is the paper's for texts of thousands of words. Where it would move a bound by more than a quarter of that
    bound ("80 to 120 words" would become [0, 200]), a tenth of it is used.

    `wide` decides what happens to a range wider than `widest`. The default keeps it, because the paper's own example
    [6000, 10000] is that wide.
    """

    step: int = 100
    largest: int = 12_000
    widest: int = 3_000
    wide: Literal["keep", "narrow", "drop"] = "keep"

    def settle(self, lower: int, upper: int, *, firm: tuple[bool, bool] = (False, False)) -> Settled:
        """Checks and rounds a range.

        `firm` marks the bounds that the request states explicitly. They are rounded inwards, others outwards. Firm bounds
        that would meet ("850 to 900" by steps of 100) are rounded outwards as well: no text has exactly 900 words.
        """
        if lower == upper == 0:
            return Settled(None, "[0, 0]: impossible or oversized")
        if not 0 <= lower <= upper:
            return Settled(None, "bounds below 0 or in the wrong order")
        down, up = self._round(lower, upper, firm)
        # "About 11,500" becomes [10300, 12000]: the upper bound is cut to the largest length. A range is refused only
        # if its lower bound, its middle or a firm upper bound exceeds the largest length.
        if lower + upper > 2 * self.largest or down > self.largest or (firm[1] and upper > self.largest):
            return Settled(None, "longer than the largest length")
        up = min(up, self.largest)
        wide = up - down > self.widest
        if wide and self.wide == "drop":
            return Settled(None, "wider than allowed", wide=True)
        if wide and self.wide == "narrow":
            up = down + self.widest
        return Settled(LengthRange(down, up), rounded=(down, up) != (lower, upper), wide=wide)

    def settle_request(self, request: LengthRequest) -> Settled:
        """Checks and rounds a range that the request states in numbers."""
        firm = (request.kind in ("at least", "between"), request.kind in ("at most", "between"))
        return self.settle(request.lower, request.upper, firm=firm)

    def _round(self, lower: int, upper: int, firm: tuple[bool, bool]) -> tuple[int, int]:
        step = self.step
        down, up = _round_to(step, lower, upper, firm)
        while step > 1 and (4 * abs(down - lower) > lower or 4 * abs(up - upper) > upper):
            step = max(step // 10, 1)
            down, up = _round_to(step, lower, upper, firm)
        return down, up


@dataclass(frozen=True)
class TokenBudget:
    """The token budget of a response with thinking. The token rates are estimates for Qwen2.5's vocabulary.

    `new_tokens`: rollout.max_new_tokens. `thinking`: tokens of the think segment (2–3k in the paper's plots, C).
    """

    new_tokens: int = 14_000
    thinking: int = 2_500
    per_word: float = 1.35
    per_character: float = 0.8

    def fits(self, lower: int, unit: Unit) -> bool:
        """Returns whether the shortest answer in range, in words or (Chinese) characters, leaves room for thinking."""
        rate = self.per_character if unit == "characters" else self.per_word
        return self.thinking + lower * rate <= self.new_tokens


def _round_to(step: int, lower: int, upper: int, firm: tuple[bool, bool]) -> tuple[int, int]:
    outside = lower // step * step, -(-upper // step) * step
    inside = -(-lower // step) * step, upper // step * step
    down, up = (inside if firm[0] else outside)[0], (inside if firm[1] else outside)[1]
    if down == up and firm == (True, False):
        up += step
    if down == up and firm == (False, True):
        down = max(down - step, 0)
    return (down, up) if down < up else outside
