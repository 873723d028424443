"""The length reward (LongWriter-Zero, section 3.1): 1 inside the requested range, decreasing outside it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Sequence

from megatron_lwz.config.sections import LengthReward
from megatron_lwz.data.text.grammar import ParsedResponse, ResponseParser, Segment, Template, parse_rollout
from megatron_lwz.data.text.length import Unit, UnitCounter, count_units
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.types import ComponentScore, LengthRange, Prompt, Rollout


def length_reward(length: int, asked: LengthRange, maximum: float, *, clip: bool = True) -> float:
    """Returns r(L): 1 in [lower, upper], L / lower below, (L_max − L) / (L_max − upper) above.

    With `clip` it is at least 0. Needs L_max > upper.
    """
    if length < asked.lower:
        return length / asked.lower
    if length <= asked.upper:
        return 1.0
    reward = (maximum - length) / (maximum - asked.upper)
    return max(reward, 0.0) if clip else reward


def longbench_reward(length: int, asked: LengthRange) -> float:
    """Returns LongBench-Write's S_l / 100 for the nearest bound.

    It is 1 − (L / upper − 1) / 3 above the range, 1 − (lower / L − 1) / 2 below it, and at least 0.
    """
    if length > asked.upper:
        return max(0.0, 1 - (length / asked.upper - 1) / 3)
    if length < asked.lower:
        return max(0.0, 1 - (asked.lower / length - 1) / 2) if length else 0.0
    return 1.0


def score_length(length: int, asked: LengthRange, section: LengthReward) -> float:
    """Returns the reward with all settings of the config: shape, L_max, clip, and a power for each side.

    Needs L_max > upper.
    """
    if section.shape == "longbench":
        reward = longbench_reward(length, asked)
    else:
        reward = length_reward(length, asked, largest_length(asked, section), clip=section.clip)
    power = section.under_power if length < asked.lower else section.over_power
    return reward**power if reward > 0 else reward  # an unclipped value below 0 stays linear


def settled_length(asked: LengthRange, section: LengthReward) -> float:
    """Returns the length from which on `score_length` stays 0; infinite if there is none (`clip: false`)."""
    if section.shape == "longbench":
        return 4.0 * asked.upper
    return largest_length(asked, section) if section.clip else math.inf


def largest_length(asked: LengthRange, section: LengthReward) -> float:
    """Returns L_max of a prompt: one value for all prompts, or a multiple of the prompt's upper bound."""
    if section.relative_maximum is not None:
        return section.relative_maximum * asked.upper
    return section.maximum


class LengthComponent(PerRollout):
    """Scores the length of the answer segment. A response that opened no answer has length 0.

    A prompt without a range gives invalid scores, so the component is masked. Details: `words` (in the config's unit)
    and `in_range`.
    """

    name = "length"

    def __init__(self, section: LengthReward, tokenizer: Tokenizer | None = None) -> None:
        """Takes `tokenizer`, which the unit `tokens` needs. Raises ConfigError without it."""
        if section.unit == "tokens" and tokenizer is None:
            raise ConfigError("reward.length.unit", section.unit, "needs the policy's tokenizer")
        self._section = section
        self._tokenizer = tokenizer

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score per rollout, computed in a thread.

        Raises ConfigError if the prompt asks for L_max or more.
        """
        section = self._section
        if prompt.length is not None and prompt.length.upper >= largest_length(prompt.length, section):
            advice = f"must be larger than the {prompt.length.upper} that prompt {prompt.id!r} asks for"
            raise ConfigError("reward.length.maximum", section.maximum, advice)
        return await asyncio.to_thread(lambda: [self._score_one(prompt, rollout) for rollout in rollouts])

    def _score_one(self, prompt: Prompt, rollout: Rollout) -> ComponentScore:
        parsed = parse_rollout(prompt, rollout)
        length = self.measure(parsed.answer or "")
        if self._section.count_thinking:
            length += self.measure(parsed.think or "")
        if prompt.length is None:
            return ComponentScore(0.0, valid=False, details={"words": float(length)})
        in_range = float(prompt.length.lower <= length <= prompt.length.upper)
        value = score_length(length, prompt.length, self._section)
        return ComponentScore(value, details={"words": float(length), "in_range": in_range})

    def measure(self, text: str) -> int:
        """Returns the length of `text` in the config's unit."""
        if self._section.unit != "tokens":
            return count_units(text, self._section.unit)
        assert self._tokenizer is not None  # checked by __init__
        return len(self._tokenizer.encode(text))


class LengthMeter(ResponseParser):
    """Measures the length of a response during generation, as `LengthComponent` measures the finished response.

    Each piece is counted once. The result does not depend on where the text is cut. Tokens cannot be counted in this
    way.
    """

    def __init__(
        self, template: Template = "think", unit: Unit = "words", quoted: Collection[str] = frozenset()
    ) -> None:
        """Takes `quoted` as `ResponseParser` does: the tags that the prompt names."""
        super().__init__(template, quoted)
        self._counters: dict[Segment, UnitCounter] = {"think": UnitCounter(unit), "answer": UnitCounter(unit)}

    @property
    def thinking(self) -> int:
        """Units in the think segment so far."""
        return self._counters["think"].count

    @property
    def answer(self) -> int:
        """Units in the answer so far. An incomplete tag counts once it turns out not to be a tag."""
        return self._counters["answer"].count

    def finish(self, *, stop: str | None = None) -> ParsedResponse:
        """Ends the text and counts the text held back. `stop` names the stop string, which `text` should not hold."""
        return super().finish(stop=stop)

    def _take_text(self, text: str) -> None:
        super()._take_text(text)
        self._count(text)

    def _take_tag(self, tag: str) -> None:
        segment = self.segment
        super()._take_tag(tag)
        if self.segment == segment:  # a tag where it does not belong is part of the text
            self._count(tag)

    def _count(self, text: str) -> None:
        if self.segment in self._counters:
            self._counters[self.segment].feed(text)
