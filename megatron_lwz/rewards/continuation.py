"""The continuation reward: how much what the policy wrote makes a real text more likely (VR-CLI, 2503.22828).

A frozen model judges, by likelihood alone: no labels, no judge, and nothing to flatter.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Literal

from typing_extensions import override

from megatron_lwz.config.sections import ContinuationReward
from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.errors import ConfigError
from megatron_lwz.rewards.continued_text import VERSION
from megatron_lwz.rewards.likelihood_routes import Likelihoods, likelihood_route
from megatron_lwz.rewards.per_rollout import PerRollout
from megatron_lwz.rewards.score_client import ScoreClient
from megatron_lwz.types import ComponentScore, Prompt, Rollout

CONTINUATION = "continuation"
"""Key of a prompt row: the real text that follows the request. The policy never sees it."""

_LEVELS = ((2.0, 1.0), (1.0, 0.9), (0.05, 0.5))
"""Per cent less perplexity → reward, best first (VR-CLI)."""
_KEPT = 256
"""Likelihoods without the policy's text that are kept for the other rollouts of their groups."""


class ContinuationComponent(ScoreClient, PerRollout):
    """The gain in likelihood of the row's `continuation` by the rollout's thinking or answer.

    A rollout without that segment gains nothing and costs no request. A row without a continuation is masked, and so is
    a text that the server refuses, for example as too long. Details: `percent`, 100 · (1 − perplexity with / without),
    `nats`, the gain of the mean log-prob per token, and `without`, that mean without the text. `metrics()` counts
    requests and masked scores, by reason.
    """

    name = "continuation"

    def __init__(self, section: ContinuationReward, token: str | None = None) -> None:
        """Takes `token`; None reads it from the variable `reward.continuation.api_key_env`. Raises LwzError."""
        self._route = likelihood_route(section)
        super().__init__(section, self._route.path, self._route.server, token)
        self._section = section
        self._baselines: dict[tuple[str, str], asyncio.Future[Likelihoods | None]] = {}

    @override
    async def close(self) -> None:
        """Closes all connections."""
        for task in self._baselines.values():
            task.cancel()
        self._baselines.clear()
        await super().close()

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[ComponentScore]:
        """Returns one score per rollout."""
        continuation = continuation_of(prompt)
        masked = ComponentScore(0.0, valid=False, version=self.name if continuation else "no-continuation")
        if not continuation:
            self.mask("no continuation", len(rollouts))
            return [masked] * len(rollouts)
        base = await self._baseline(prompt.text, continuation)
        without = None if base is None else base.values[0]
        if base is None or without is None:
            self.mask("no baseline", len(rollouts))
            return [masked] * len(rollouts)
        texts = [self._written(prompt, rollout) for rollout in rollouts]
        asked = [text for text in texts if text]
        found = await self._likelihoods(prompt.text, continuation, asked) if asked else base
        values = iter(found.values if found is not None else [None] * len(asked))
        scores = []
        for text in texts:
            value = next(values) if text else without
            scores.append(masked if value is None else self._scored(value - without, without, base.model))
        return scores

    def _written(self, prompt: Prompt, rollout: Rollout) -> str:
        parsed = parse_rollout(prompt, rollout)
        return ((parsed.think if self._section.reads == "thinking" else parsed.answer) or "").strip()

    def _scored(self, gain: float, base: float, model: str) -> ComponentScore:
        version = f"{self.name}/{VERSION}/{model}"
        details = {"percent": percent(gain), "nats": gain, "without": base}
        return ComponentScore(reward_of(gain, self._section.score), details=details, version=version[:200])

    async def _baseline(self, request: str, continuation: str) -> Likelihoods | None:
        """Returns the likelihood without a text of the policy, which all rollouts of a prompt share."""
        key = request, continuation
        task = self._baselines.get(key)
        if task is None:
            while len(self._baselines) >= _KEPT:
                self._baselines.pop(next(iter(self._baselines)))
            task = self._baselines[key] = asyncio.ensure_future(self._likelihoods(request, continuation, [""]))
        found = await asyncio.shield(task)  # a rollout that is given up leaves it to the others
        if found is None:
            self._baselines.pop(key, None)
        return found

    async def _likelihoods(self, request: str, continuation: str, texts: Sequence[str]) -> Likelihoods | None:
        body, read = self._route.question(request, continuation, texts)
        found = await self.ask(body, len(texts), read)
        if found is not None:
            self.counters["scored"] += len(texts) - found.values.count(None)
            self.mask("refused text", found.values.count(None))
        return found


def continuation_of(prompt: Prompt) -> str:
    """Returns the row's continuation, "" if it has none."""
    found = prompt.extra.get(CONTINUATION)
    return found.strip() if isinstance(found, str) else ""


def check_continuations(section: ContinuationReward, source: str, prompts: Sequence[Prompt]) -> None:
    """Raises ConfigError if the component is used and no row of the prompts' file `source` has a continuation."""
    if section.used and not any(map(continuation_of, prompts)):
        advice = f"no row has a text `{CONTINUATION}`, so reward.continuation would score nothing: add that column"
        raise ConfigError("data.prompts", source, advice)


def percent(gain: float) -> float:
    """Returns 100 · (1 − perplexity with / perplexity without) for a gain in nats per token, not below −100."""
    return max(-100.0, 100 * (1 - math.exp(min(-gain, 700.0))))


def reward_of(gain: float, kind: Literal["levels", "percent", "nats"]) -> float:
    """Returns the reward for a gain in nats per token: VR-CLI's levels, per cent less perplexity, or the gain itself."""
    if kind == "nats":
        return gain
    less = percent(gain)
    if kind == "percent":
        return less
    return next((reward for bound, reward in _LEVELS if less >= bound), 0.0)
