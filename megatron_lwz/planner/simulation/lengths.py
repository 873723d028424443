"""Laws of length: how long the prompt and the responses of the n-th group are, and whether its scores are all equal.

A group's lengths depend on its number and the seed alone, so every setting of a comparison writes the same rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_lwz.planner.engines import mean_context

_SAMPLES = 1 << 15
"""Lengths that are drawn where a law's mean under the token limit has no short formula."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GroupTokens:
    """What one group is long."""

    prompt: int
    responses: tuple[int, ...]
    barren: bool = False
    """Whether nothing can be learned from it: all its scores are equal."""
    masked: int = 0
    """Tokens of its sequences that have no weight in the loss for another reason, prompts included."""

    @property
    def response_tokens(self) -> int:
        """All tokens of its responses."""
        return sum(self.responses)

    @property
    def tokens(self) -> int:
        """Tokens of the sequences that are trained on, each with the prompt."""
        return self.response_tokens + self.prompt * len(self.responses) - self.masked


class Lengths(Protocol):
    """A law of length."""

    @property
    def mean(self) -> float:
        """Mean tokens of a response."""
        ...

    @property
    def prompt(self) -> float:
        """Mean tokens of a prompt."""
        ...

    @property
    def trained(self) -> float:
        """Mean tokens of a rollout that is trained on, over all rollouts of groups with variance; with the prompt."""
        ...

    @property
    def barren(self) -> float:
        """Share of the groups without variance."""
        ...

    def group(self, number: int) -> GroupTokens:
        """Returns the n-th group, from 0."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Independent responses with a given distribution, cut at `most` tokens."""

    quantile: Callable[[Floats], Floats]
    """Probabilities → lengths."""
    most: int
    prompt: int
    size: int
    """Rollouts of a group."""
    barren: float = 0.0
    """Share of the groups without variance."""
    masks: bool = False
    """Whether what is cut has no weight in the loss (`grpo.truncated: mask`)."""
    seed: int = 0

    @property
    def mean(self) -> float:
        """Mean tokens of a response."""
        return float(self.cut((np.arange(_SAMPLES) + 0.5) / _SAMPLES).mean())

    @property
    def trained(self) -> float:
        """As in `Lengths`. Those that are cut count as 0 where they are masked."""
        shares = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
        return float(((self.cut(shares) + self.prompt) * ~self._masked(shares)).mean())

    @property
    def context(self) -> float:
        """Mean tokens before a token that is being written, prompt included."""
        return self.prompt + mean_context(self.cut((np.arange(_SAMPLES) + 0.5) / _SAMPLES))

    def group(self, number: int) -> GroupTokens:
        """Returns the n-th group."""
        noise = np.random.default_rng([self.seed, number])
        shares = noise.random(self.size)
        lengths = tuple(map(int, self.cut(shares).tolist()))
        masked = sum(
            self.prompt + length for length, off in zip(lengths, self._masked(shares).tolist(), strict=True) if off
        )
        return GroupTokens(self.prompt, lengths, bool(noise.random() < self.barren), masked)

    def _masked(self, probabilities: Floats) -> npt.NDArray[np.bool_]:
        return (self.quantile(probabilities) > self.most) & self.masks

    def cut(self, probabilities: Floats) -> Floats:
        """Returns whole lengths of at least one token."""
        return np.clip(np.rint(self.quantile(probabilities)), 1, self.most)


@dataclass(frozen=True)
class Replayed:
    """The groups of a run in their order, and again from the first when they are used up."""

    groups: Sequence[GroupTokens]

    @property
    def mean(self) -> float:
        """Mean tokens of a response."""
        return sum(group.response_tokens for group in self.groups) / sum(len(group.responses) for group in self.groups)

    @property
    def prompt(self) -> float:
        """Mean tokens of a prompt."""
        return sum(group.prompt for group in self.groups) / len(self.groups)

    @property
    def trained(self) -> float:
        """As in `Lengths`; 0 if all groups lack variance."""
        found = [group for group in self.groups if not group.barren]
        return sum(group.tokens for group in found) / max(1, sum(len(group.responses) for group in found))

    @property
    def barren(self) -> float:
        """Share of the groups without variance."""
        return sum(group.barren for group in self.groups) / len(self.groups)

    def group(self, number: int) -> GroupTokens:
        """Returns the n-th group."""
        return self.groups[number % len(self.groups)]


def quantile_of(text: str) -> Callable[[Floats], Floats]:
    """Parses a law: `constant:N`, `uniform:MEAN`, `exponential:MEAN` or `lognormal:MEAN:SIGMA`. Raises ValueError.

    MEAN is that of the law itself; the token limit then cuts it. SIGMA is the standard deviation of the logarithm.
    """
    name, *given = text.split(":")
    if name not in _LAWS:
        raise ValueError(f"unknown law {name!r:.40}: choose one of {', '.join(FORMS)}")
    form, law = FORMS[list(_LAWS).index(name)], _LAWS[name]
    try:
        numbers = [float(number) for number in given]
    except ValueError:
        raise ValueError(f"{text!r:.60}: write {form}") from None
    if len(numbers) != form.count(":") or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"{text!r:.60}: write {form}, with numbers above 0")
    return law(*numbers)


def _lognormal(mean: float, sigma: float) -> Callable[[Floats], Floats]:
    normal = NormalDist(math.log(mean) - sigma**2 / 2, sigma)
    least = 2.0**-53  # a share of exactly 0 has no quantile
    return lambda shares: np.exp([normal.inv_cdf(share) for share in np.clip(shares, least, 1 - least).tolist()])


_LAWS: dict[str, Callable[..., Callable[[Floats], Floats]]] = {
    "constant": lambda number: lambda share: np.full_like(share, number),
    "uniform": lambda mean: lambda share: 2 * mean * share,
    "exponential": lambda mean: lambda share: -mean * np.log1p(-share),
    "lognormal": _lognormal,
}
FORMS = ("constant:N", "uniform:MEAN", "exponential:MEAN", "lognormal:MEAN:SIGMA")
"""How laws are written."""
