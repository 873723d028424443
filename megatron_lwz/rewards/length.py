"""The length reward (LongWriter-Zero, section 3.1): 1 inside the asked range, falling linearly outside it."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_lwz.config.sections import LengthReward
from megatron_lwz.data.text.grammar import parse_response
from megatron_lwz.data.text.length import count_units
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError
from megatron_lwz.types import ComponentScore, LengthRange, Prompt, Rollout


def length_reward(length: int, asked: LengthRange, maximum: int, *, clip: bool = True) -> float:
    """r(L) = 1 in [lower, upper]; L / lower below; (L_max − L) / (L_max − upper) above, `clip`: not below 0.

    Needs L_max > upper.
    """
    if length < asked.lower:
        return length / asked.lower
    if length <= asked.upper:
        return 1.0
    reward = (maximum - length) / (maximum - asked.upper)
    return max(reward, 0.0) if clip else reward


class LengthComponent:
    """Scores the length of the answer segment; a response that opened no answer has length 0.

    A prompt without a range gives invalid scores: the component is then masked out. Details: `words` (in the config's
    unit) and `in_range`.
    """

    name = "length"

    def __init__(self, section: LengthReward, tokenizer: Tokenizer | None = None) -> None:
        """`tokenizer` is needed for the unit `tokens`. Raises ConfigError without it."""
        if section.unit == "tokens" and tokenizer is None:
            raise ConfigError("reward.length.unit", section.unit, "needs the policy's tokenizer")
        self._section = section
        self._tokenizer = tokenizer

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """One score per rollout. Raises ConfigError when the prompt asks for L_max or more."""
        maximum = self._section.maximum
        if prompt.length is not None and prompt.length.upper >= maximum:
            advice = f"must be larger than the {prompt.length.upper} that prompt {prompt.id!r} asks for"
            raise ConfigError("reward.length.maximum", maximum, advice)
        return [self._score_one(prompt, rollout) for rollout in rollouts]

    def _score_one(self, prompt: Prompt, rollout: Rollout) -> ComponentScore:
        parsed = parse_response(rollout.text, prompt.template, stop=rollout.stop)
        length = self.measure(parsed.answer or "")
        if self._section.count_thinking:
            length += self.measure(parsed.think or "")
        if prompt.length is None:
            return ComponentScore(0.0, valid=False, details={"words": float(length)})
        value = length_reward(length, prompt.length, self._section.maximum, clip=self._section.clip)
        in_range = float(prompt.length.lower <= length <= prompt.length.upper)
        return ComponentScore(value, details={"words": float(length), "in_range": in_range})

    def measure(self, text: str) -> int:
        """Length of `text` in the config's unit."""
        if self._section.unit != "tokens":
            return count_units(text, self._section.unit)
        assert self._tokenizer is not None  # checked by __init__
        return len(self._tokenizer.encode(text))
