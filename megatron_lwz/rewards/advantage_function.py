"""Advantages by the user's own function (`reward.advantage_function`): how it is called, and its start-up check.

    # my_advantages.py
    import torch
    from megatron_lwz.types import RewardColumns

    def centred(columns: RewardColumns) -> torch.Tensor:
        # [P, G]: the sum of a rollout's valid scores, less the mean of its group
        counted = columns.valid & columns.included.unsqueeze(-1)
        total = (columns.rewards * counted).sum(-1)
        count = columns.included.sum(1, keepdim=True).clamp(min=1)
        return total - total.sum(1, keepdim=True) / count

A group's advantages may depend on that group alone. Groups are trained on in parts, and `grpo.zero_variance: refill`
calls the function for one group at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from megatron_lwz.errors import ConfigError
from megatron_lwz.types import LARGEST_SCORE, RewardColumns
from megatron_lwz.user_functions import load_function

KEY = "reward.advantage_function"
WHOLE = "advantage_function"
"""Column name for a function that returns one number per rollout, in place of the components' names."""

_EQUAL = "a group of equal scores"
_MADE_UP = 6
"""Number of rollouts in a group of the start-up check."""
_TOLERANCE = 1e-4
"""Tolerance of the start-up check, relative and absolute: a function may compute in fp32."""
_ZERO = 1e-12
"""A part below this is rounding and counts as 0. The mean of equal fp64 numbers is off by as little as 1e-17."""
_NOISE = 1e-6
"""Upper bound of the rounding noise that an fp32 function may give for equal scores. A larger value is intended."""
_NAMED = 8
"""Maximum number of prompts that an error names."""


def function_advantages(
    path: str, columns: RewardColumns, *, prompts: Sequence[str]
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Returns each column's contribution to each rollout's advantage, [P, G, C] fp64, and the C names.

    A function's result [P, G, R] keeps the components' names. A result [P, G] is one column named WHOLE. A rollout that
    is not included gets 0, whatever the function returns. A part below 1e-12 becomes 0 too. `prompts`: the P prompts'
    ids, for errors. Raises ConfigError if the function raises, or if its result is not that many finite floating-point
    numbers.
    """
    try:
        parts = _call(load_function(KEY, path), columns)
        infinite = _not_finite(parts)
        if infinite.any():
            prompts = [prompt for prompt, bad in zip(prompts, infinite.tolist(), strict=True) if bad]
            raise _Refused(f"gives numbers that are not finite (or above {LARGEST_SCORE:g})")
    except _Refused as error:
        more = f" and {len(prompts) - _NAMED} more" if len(prompts) > _NAMED else ""
        raise ConfigError(KEY, path, f"{error}; prompts: {', '.join(prompts[:_NAMED])}{more}") from error
    return parts, columns.names if parts.shape[-1] == len(columns.names) else (WHOLE,)


def check_advantage_function(path: str, names: Sequence[str], weights: torch.Tensor) -> None:
    """Calls the function on made-up scores of the components `names` with `weights` [R]. Raises ConfigError.

    It checks what `function_advantages` checks. It also checks that equal scores do not give rounding noise (a group
    without variance is one whose advantages are exactly 0), and that each group's advantages are the same alone as
    beside other groups.
    """
    if WHOLE in names:
        raise ConfigError(
            KEY, path, f"a component has the name '{WHOLE}', which the report gives to it: rename that one"
        )
    function = load_function(KEY, path)
    columns, titles = _made_up_columns(tuple(names), weights)
    try:
        alone = []
        for place, title in enumerate(titles):
            group = _group(columns, place)
            parts = _call(function, group, f" for {title}")
            if _not_finite(parts).any():
                raise _Refused(f"gives numbers that are not finite for {title}")
            if title == _EQUAL and 0 < (largest := parts.abs().max().item()) < _NOISE:
                raise _Refused(
                    f"gives {largest:.1e} for {title}, which is rounding: compute in fp64 or return 0 there, by which "
                    "grpo.zero_variance knows a group without variance"
                )
            alone.append(parts)
        together = _call(function, columns)
        if not torch.allclose(together, torch.cat(alone), rtol=_TOLERANCE, atol=_TOLERANCE):
            raise _Refused("gives a group other advantages beside other groups than alone, or at each call others")
    except _Refused as error:
        raise ConfigError(
            KEY, path, f"{error} (checked on made-up scores of {_MADE_UP} rollouts; docs/rewards.md)"
        ) from error


class _Refused(Exception):
    """The fault of the function or of its result."""


def _call(function: Callable[..., object], columns: RewardColumns, where: str = "") -> torch.Tensor:
    """Returns the function's contributions, [P, G, R] or [P, G, 1] fp64, 0 where not included or rounding.

    Raises _Refused.
    """
    own = {name: getattr(columns, name).clone() for name in ("rewards", "valid", "included", "truncated", "weights")}
    try:
        found = function(replace(columns, **own))  # copies: changes that a function makes in place affect only these
    except Exception as error:
        raise _Refused(" ".join(f"raises {type(error).__name__}: {error}".split()) + where) from error
    if not isinstance(found, torch.Tensor):
        raise _Refused(f"returns {type(found).__name__}, not a torch.Tensor{where}")
    whole, split = tuple(columns.included.shape), tuple(columns.rewards.shape)
    if tuple(found.shape) not in (whole, split):
        raise _Refused(f"returns shape {tuple(found.shape)}, not [P, G] = {whole} or [P, G, R] = {split}{where}")
    if not found.is_floating_point():
        raise _Refused(f"returns {str(found.dtype).removeprefix('torch.')}, not floating-point numbers{where}")
    parts = found.detach().to("cpu", torch.float64).reshape(*whole, -1)
    counted = columns.included.unsqueeze(-1) & ~(parts.abs() < _ZERO)
    return parts.where(counted, parts.new_zeros(()))


def _not_finite(parts: torch.Tensor) -> torch.Tensor:
    """Returns [P] bool: whether a group has parts that are not finite, or together larger than an advantage may be."""
    return ~(parts.abs().sum(-1) <= LARGEST_SCORE).all(-1)


def _group(columns: RewardColumns, place: int) -> RewardColumns:
    """Returns the columns of one of the P groups, P = 1."""
    cut = {name: getattr(columns, name)[place : place + 1] for name in ("rewards", "valid", "included", "truncated")}
    return replace(columns, **cut)


def _made_up_columns(names: tuple[str, ...], weights: torch.Tensor) -> tuple[RewardColumns, list[str]]:
    """Returns a group for each case that can occur in a run, and each group's title in errors."""
    rollout, component = torch.arange(_MADE_UP), torch.arange(len(names))
    every, nobody = torch.ones(_MADE_UP, len(names), dtype=torch.bool), torch.zeros(_MADE_UP, dtype=torch.bool)
    one_each = rollout.unsqueeze(1) == component % _MADE_UP
    cut = rollout >= _MADE_UP - 2
    cases = {  # title: (valid [G, R], truncated [G], left out [G])
        "a group of scores that differ": (every, nobody, nobody),
        _EQUAL: (every, nobody, nobody),
        "a group in which every component lacks a score": (~one_each, nobody, nobody),
        "a group in which a component has no score": (every & (component > 0), nobody, nobody),
        "a group in which a rollout has no score": (every & (rollout > 0).unsqueeze(1), nobody, nobody),
        "a group without any score": (~every, nobody, nobody),
        "a group with truncated rollouts": (every, cut, nobody),
        "a group with truncated rollouts left out": (every, cut, cut),
        "a group with one rollout that takes part": (every, rollout > 0, rollout > 0),
        "a group in which no rollout takes part": (every, ~nobody, ~nobody),
    }
    valid, truncated, left_out = (torch.stack(column) for column in zip(*cases.values(), strict=True))
    rewards = torch.rand(valid.shape, generator=torch.Generator().manual_seed(0))  # fp32, as scores are
    titles = list(cases)
    equal = titles.index(_EQUAL)
    rewards[equal] = rewards[equal, 0]
    rewards = rewards.where(valid, rewards.new_zeros(())).double()
    return RewardColumns(rewards, valid, ~left_out, truncated, names, weights.double()), titles
