"""A custom policy loss, `grpo.loss_function: package.module:function`: calls it, and checks it before the run.

    def my_loss(inputs: LossInputs, section: GrpoSection) -> Tensor: ...
    def my_loss(inputs: LossInputs, section: GrpoSection, sequence_mean: SequenceMean) -> Tensor: ...

The contract is in docs/losses.md. A function with the parameter `sequence_mean` is sequence-level: one call gets all of
a rank's tokens. Any other function is token-level: one call may get any set of tokens.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from megatron_lwz.algorithms.grpo import ContextSum, LossInputs, SequenceMean
from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.errors import ConfigError
from megatron_lwz.user_functions import load_function

KEY = "grpo.loss_function"
PREFIX = "loss/"
"""Prefix of the names of the function's own metrics."""
_SEQUENCE_MEAN = "sequence_mean"
_MAX = "max"  # `loss/max` would be reduced as a maximum (algorithms/grpo.py)
_TOLERANCE = 1e-5


class LossFunction:
    """The function at `path`, as a `PolicyLoss` for `grpo_loss`.

    Any exception it raises becomes a one-line ConfigError.
    """

    def __init__(self, path: str) -> None:
        """Imports the function and reads its parameters. Raises ConfigError."""
        self._path = path
        self._function = load_function(KEY, path)
        self._names: list[str] | None = None
        try:
            signature = inspect.signature(self._function)
            self.sequence_level = _SEQUENCE_MEAN in signature.parameters
            signature.bind(None, None, **({_SEQUENCE_MEAN: None} if self.sequence_level else {}))
        except (TypeError, ValueError) as error:
            advice = f"must take (inputs, section), or (inputs, section, sequence_mean), not {_shown(self._function)}"
            raise ConfigError(KEY, path, advice) from error

    def __call__(
        self, inputs: LossInputs, section: GrpoSection, context_sum: ContextSum
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (loss per token [T], 0 where the weight is 0; sums of the function's metrics). Raises ConfigError.

        The function gets the tokens of weight > 0 only. A sequence-level one is called on every context-parallel rank.
        """
        rows = (inputs.weight > 0).nonzero().squeeze(1)
        loss, values = self.per_token(_select(inputs, rows), section, context_sum)
        whole = loss.new_zeros(len(inputs.weight)).index_put((rows,), loss)
        return whole, {PREFIX + name: value.detach().sum().float() for name, value in values.items()}

    def per_token(
        self, inputs: LossInputs, section: GrpoSection, context_sum: ContextSum
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Returns the function's result for these tokens: loss [T], metrics [T] by name. Raises ConfigError."""
        failed: list[Exception] = []

        def summed(sums: Tensor) -> Tensor:
            try:
                return context_sum(sums)
            except Exception as error:  # another rank is gone, for example: not the function's fault
                failed.append(error)
                raise

        extra = {_SEQUENCE_MEAN: SequenceMean(inputs, summed)} if self.sequence_level else {}
        try:
            found = self._function(inputs, section, **extra)
        except Exception as error:  # a custom function may raise anything
            if failed:
                raise failed[0] from None
            given = "" if len(inputs.logprob) else "given no tokens, "
            raise self.error(f"{given}raised {type(error).__name__}: {error}{_place(error)}") from error
        loss, values = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
        self._check_tensor("the loss", loss, like=inputs.logprob)
        if not isinstance(values, Mapping):
            raise self.error(f"returned {type(values).__name__} beside the loss: return a dict, name → values [T]")
        for name, value in values.items():
            if not isinstance(name, str) or not re.fullmatch(r"\w+", name) or name == _MAX:
                raise self.error(f"returned a metric named {name!r}: use letters, digits and _, and not '{_MAX}'")
            self._check_tensor(f"the metric {name!r}", value, like=inputs.logprob)
        if self._names is None:
            self._names = sorted(values)
        if sorted(values) != self._names:
            raise self.error(f"returned metrics {sorted(values)}, and {self._names} before: return the same every time")
        return loss, values

    def error(self, advice: str) -> ConfigError:
        """Returns a one-line error that names the function."""
        return ConfigError(KEY, self._path, " ".join(advice.split()))

    def _check_tensor(self, what: str, value: Any, *, like: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise self.error(f"{what} is {type(value).__name__}, not a tensor: return one value per token")
        if value.shape != like.shape:
            raise self.error(f"{what} has shape {list(value.shape)} for {len(like)} tokens: return one value per token")
        # a metric may be a count or a flag
        if what == "the loss" and value.dtype != like.dtype:
            raise self.error(f"{what} is {_dtype(value)}: return {_dtype(like)}")
        if value.device != like.device:
            raise self.error(f"{what} is on {value.device}, its inputs are on {like.device}")


@cache
def load_loss_function(path: str | None) -> LossFunction | None:
    """Returns the LossFunction of a path, created once per process; None for None. Raises ConfigError."""
    return None if path is None else LossFunction(path)


def check_loss_function(section: GrpoSection, device: torch.device) -> None:
    """Runs `grpo.loss_function`, if there is one, on a few synthetic tokens. Raises ConfigError for the first fault.

    The tokens cover policy = old and policy ≠ old, advantages of both signs and 0, and no token at all. Checks type,
    shape, dtype and finiteness of the loss, its gradient and its metrics. Checks that a token's loss stays the same
    without the other tokens, or at sequence level without the other sequences, and that every call uses
    `sequence_mean` equally often. No communication.
    """
    function = load_loss_function(section.loss_function)
    if function is None:
        return
    calls = set()
    for on_policy in (False, True):
        inputs = _synthetic(section, device, on_policy=on_policy)
        rank = _OneRank()
        loss = _check_values(function, inputs, section, rank)
        calls.add(rank.calls)
        plain = replace(inputs, logprob=inputs.logprob.detach(), entropy=inputs.entropy.detach())
        with torch.no_grad():  # a run also calls it like this, for the metrics
            function.per_token(plain, section, _OneRank())
        # Packing, chunks and data-parallel ranks group tokens in different ways.
        if function.sequence_level:
            part, advice = inputs.sequence_ids == 1, "a sequence's loss depends on the other sequences"
        else:
            part = torch.arange(len(loss), device=device) % 3 == 0
            advice = "a token's loss depends on the other tokens: take a parameter sequence_mean for a sequence's means"
        alone, _ = function.per_token(_select(inputs, part.nonzero().squeeze(1)), section, _OneRank())
        if not torch.allclose(alone, loss[part], rtol=_TOLERANCE, atol=_TOLERANCE):
            raise function.error(advice)
    rank = _OneRank()
    _check_values(function, _select(inputs, torch.arange(0, device=device)), section, rank)
    if len(calls | {rank.calls}) > 1:  # context-parallel ranks wait for each other in it
        raise function.error("calls sequence_mean more often for some tokens than for others, or for none")


def _check_values(function: LossFunction, inputs: LossInputs, section: GrpoSection, rank: _OneRank) -> Tensor:
    """Returns the loss [T] without gradient.

    Raises ConfigError unless loss, gradients and metrics are finite numbers.
    """
    loss, values = function.per_token(inputs, section, rank)
    gradients: tuple[Tensor | None, ...] = (None, None)
    if loss.requires_grad:
        try:
            gradients = torch.autograd.grad(loss.sum(), (inputs.logprob, inputs.entropy), allow_unused=True)
        except Exception as error:  # a custom autograd function may raise anything
            raise function.error(f"its gradient raised {type(error).__name__}: {error}") from error
    if all(gradient is None for gradient in gradients):
        given = "" if len(inputs.logprob) else "given no tokens, "
        raise function.error(f"{given}the loss has no gradient: nothing would be trained (a detach, or torch.no_grad?)")
    checked: dict[str, Tensor | None] = {
        "the loss": loss,
        **{f"the metric {name!r}": value for name, value in values.items()},
    }
    checked |= dict(zip(("the gradient in logprob", "the gradient in entropy"), gradients, strict=True))
    for what, value in checked.items():
        if value is not None and not value.isfinite().all():
            raise function.error(f"{what} is not finite for ordinary tokens")
    return loss.detach()


def _synthetic(section: GrpoSection, device: torch.device, *, on_policy: bool) -> LossInputs:
    """Returns 40 tokens of four sequences, the third one empty, as they occur in a run with this section."""
    generator = torch.Generator().manual_seed(0)
    count = 40
    logprob = -3 * torch.rand(count, generator=generator) - 0.01
    old, behaviour, reference = (
        (logprob + 0.3 * torch.randn(count, generator=generator)).clamp(max=-0.01) for _ in range(3)
    )
    ids = torch.tensor([0, 1, 3]).repeat_interleave(torch.tensor([10, 14, 16]))
    inputs = LossInputs(
        logprob=logprob,
        entropy=3 * torch.rand(count, generator=generator),
        old=logprob.clone() if on_policy else old,
        behaviour=behaviour,
        reference=reference if section.kl_coefficient else None,
        advantage=torch.tensor([1.2, -0.7, 0.0, 0.0])[ids],
        weight=torch.tensor([1.0, 0.5, 1.0, 0.25])[ids],
        sequence_ids=ids,
        sequences=4,
    )
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in vars(inputs).items() if isinstance(value, Tensor)
    }
    for name in ("logprob", "entropy"):
        moved[name].requires_grad_()
    return replace(inputs, **moved)


def _select(inputs: LossInputs, rows: Tensor) -> LossInputs:
    """Returns the inputs at `rows`, with their gradient."""
    chosen: dict[str, Any] = {
        field.name: value[rows] for field in fields(inputs) if isinstance(value := getattr(inputs, field.name), Tensor)
    }
    return replace(inputs, **chosen)


class _OneRank:
    """The sum over a single context-parallel rank. Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, sums: Tensor) -> Tensor:
        self.calls += 1
        return sums


def _place(error: BaseException) -> str:
    """Returns the place in the user's code, the frame below ours; empty when the call itself failed."""
    below = error.__traceback__.tb_next if error.__traceback__ else None
    return f" ({below.tb_frame.f_code.co_filename}, line {below.tb_lineno})" if below else ""


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shown(function: Any) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "what cannot be read"
