"""Judges a rollout before it has ended: which rules hold, and which scores are still open.

A component's score is determined if every continuation and every end give the same score. Then a rollout may be stopped
without changing its reward. docs/guard.md has the whole table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from megatron_lwz.config import Config
from megatron_lwz.config.guard import GuardSection
from megatron_lwz.config.sections import RewardSection
from megatron_lwz.data.text.grammar import quoted_tags
from megatron_lwz.data.text.length import Unit
from megatron_lwz.data.text.loops import LoopFinder
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.composite import component_sections
from megatron_lwz.rewards.length import LengthMeter, settled_length
from megatron_lwz.types import Prompt, StreamVerdict

_UNFINISHED_WORDS = 2
"""Units by which a count may still shrink. The last word of think and of the answer may become no word: "abc" counts
as one, "abc1" does not.
"""

log = logging.getLogger(__name__)


class ResponseGuard:
    """Watches the response to `prompt`. Do not feed text that may begin a stop string, because it may be cut off."""

    def __init__(
        self, prompt: Prompt, reward: RewardSection, guard: GuardSection, *, always_open: Sequence[str]
    ) -> None:
        """Takes `always_open`: components that are never determined before the end, whatever is written."""
        self._reward = reward
        self._rules = guard.rules
        self._always_open = frozenset(always_open)
        self._names = tuple(component_sections(reward))
        self._asked = prompt.length
        self._settled = float("inf") if prompt.length is None else settled_length(prompt.length, reward.length)
        self._countable = reward.length.unit != "tokens"
        unit: Unit = "characters" if reward.length.unit == "characters" else "words"
        self._meter = LengthMeter(prompt.template, unit, quoted_tags(prompt.text))
        self._loops = None
        if "loop" in guard.rules:
            self._loops = LoopFinder(characters=guard.loop_characters, repeats=guard.loop_repeats, unit=guard.loop_unit)

    def feed(self, text: str) -> StreamVerdict:
        """Adds the next piece of text.

        Returns the rules that hold now, in the config's order, and the open components.
        """
        self._meter.feed(text)
        loops = self._loops is not None and self._loops.feed(text) > 0
        holds = {"format": self._meter.hopeless, "loop": loops, "length": self._too_long()}
        rules = tuple(rule for rule in self._rules if holds[rule])
        return StreamVerdict(rules, tuple(name for name in self._names if self._is_open(name))) if rules else _QUIET

    def _is_open(self, name: str) -> bool:
        """Returns whether two continuations can give the component different scores."""
        if name in self._always_open:
            return True
        closed = self._meter.segment == "after"  # think and answer are final
        if name == "format":
            return not (self._meter.hopeless and (closed or self._reward.format.is_form_alone))
        if name == "length":
            return not (closed or self._asked is None or self._too_long())
        return not closed

    def _too_long(self) -> bool:
        if not self._countable:
            return False
        length = self._meter.answer + (self._meter.thinking if self._reward.length.count_thinking else 0)
        return length - _UNFINISHED_WORDS >= self._settled


_QUIET = StreamVerdict()


def response_guards(config: Config) -> Callable[[Prompt], ResponseGuard]:
    """Returns a function that makes the guard of a prompt's rollouts under the run's rewards.

    Raises ConfigError for guard settings that do not fit the rewards.
    """
    reward, guard = config.reward, config.rollout.guard
    names = tuple(component_sections(reward))
    for name in guard.scores:
        if name not in names:
            raise ConfigError("rollout.guard.scores", name, f"is no component: choose among {', '.join(names)}")
    if "length" in guard.rules and reward.length.unit == "tokens":
        advice = "rule length cannot count reward.length.unit: tokens as they are written; leave the rule out"
        raise ConfigError("rollout.guard.rules", list(guard.rules), advice)
    never = never_determined(config)
    left = [name for name in never if name not in guard.scores]
    if guard.mode == "on" and left:
        log.warning(
            "rollout.guard.mode is on, but nothing can be stopped, only observed: %s cannot be determined before the end "
            "(docs/guard.md), and rollout.guard.scores does not name them",
            ", ".join(left),
        )
    elif guard.mode == "on" and guard.scores:
        log.warning("rollout.guard shapes: stopped rollouts may be given the scores %s", guard.scores)
    return lambda prompt: ResponseGuard(prompt, reward, guard, always_open=never)


def never_determined(config: Config) -> tuple[str, ...]:
    """Returns the components whose score is open until a rollout has ended, whatever its text.

    The user's own function may read anything, even tokens. If `grpo.truncated` masks or penalises a rollout that
    reaches the token limit, every component's part depends on whether the continuation would have reached it.
    """
    if config.grpo.truncated != "keep":
        return tuple(component_sections(config.reward))
    return tuple(entry.title for entry in config.reward.functions)
