"""The ways of computing a log-prob under a large vocabulary that `lwz bench-kernels` compares.

They are ours, plain torch, the bare matrix products that every way needs, and those of other libraries where they are
installed (Liger-Kernel, cut-cross-entropy, TRL, verl, and torch's own linear_cross_entropy).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lwz.kernels import dispatch, settings
from megatron_lwz.kernels.linear_logprob import AutogradTokenLoss, linear_logprob, linear_loss

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """hidden [T, H] and weight [V, H] with gradient, labels [T], and the loss's weights [T]: L = Σ weights · log-prob."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Way:
    """One way. `loss` runs the forward pass to a scalar; its `.backward()` is timed too."""

    name: str
    loss: Callable[[Inputs], Tensor]
    logprob: Callable[[Inputs], Tensor] | None = None
    """Returns log-probs [T], for the error and for the forward-only time. None: the way gives a loss only."""
    product: Callable[[Inputs], Tensor] | None = None
    """What is timed forward-only in place of `logprob`."""
    same_loss: bool = True
    """Whether the loss is L, so that the gradient's error is meaningful."""
    context: Callable[[], AbstractContextManager[None]] = nullcontext


def of_logprob(
    name: str,
    logprob: Callable[[Inputs], Tensor],
    context: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Way:
    """Returns a way whose log-probs are differentiable."""
    return Way(name, lambda inputs: (logprob(inputs) * inputs.weights).sum(), logprob, context=context)


def standard() -> Iterator[Way]:
    """Yields bare products, plain torch, and every implementation of ours that runs here."""
    yield Way("products only", bare_products, product=lambda i: i.hidden @ i.weight.t(), same_loss=False)
    yield of_logprob("plain", plain)
    yield of_logprob("plain + entropy", plain_with_entropy)
    for backend in dispatch.usable():
        if backend != "reference":
            yield from ours(backend)


def ours(backend: str) -> Iterator[Way]:
    """Yields both modes of one implementation; each computes entropy and log-sum-exp too."""

    def context() -> AbstractContextManager[None]:
        return settings.using(backend=backend)

    def logprob(inputs: Inputs) -> Tensor:
        return linear_logprob(inputs.hidden, inputs.weight, inputs.labels, vocab_size=len(inputs.weight))[0]

    def loss(inputs: Inputs) -> Tensor:
        token_loss = AutogradTokenLoss(
            lambda logprob, entropy, lse, rows: (logprob * inputs.weights[rows]).sum(), len(inputs.labels)
        )
        return linear_loss(inputs.hidden, inputs.weight, inputs.labels, token_loss, vocab_size=len(inputs.weight))[0]

    yield of_logprob(f"ours, {backend}, separable", logprob, context)
    yield Way(f"ours, {backend}, in forward", loss, None, context=context)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        z = hidden @ weight.t()
        ctx.save_for_backward(hidden, weight, z)
        return z[0, 0].float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight, z = ctx.saved_tensors
        return z @ weight, z.t() @ hidden


def bare_products(inputs: Inputs) -> Tensor:
    """Runs the three products of forward and backward and nothing else: the lower bound of the time."""
    return _Products.apply(inputs.hidden, inputs.weight)


def plain(inputs: Inputs) -> Tensor:
    """Computes log-probs from whole logits [T, V], in fp32 after the product."""
    return (inputs.hidden @ inputs.weight.t()).float().log_softmax(-1).gather(1, inputs.labels[:, None]).squeeze(1)


def plain_with_entropy(inputs: Inputs) -> Tensor:
    """Computes the same log-probs, and the entropy without gradient."""
    every = (inputs.hidden @ inputs.weight.t()).float().log_softmax(-1)
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(-1)
    return every.gather(1, inputs.labels[:, None]).squeeze(1) + 0 * entropy


def peers() -> Iterator[Way]:
    """Yields the ways of other libraries that are installed."""
    if hasattr(F, "linear_cross_entropy"):
        yield of_logprob("torch linear_cross_entropy", _torch)
    for package, ways in (("cut_cross_entropy", _cce), ("liger_kernel", _liger), ("trl", _trl), ("verl", _verl)):
        if importlib.util.find_spec(package) is None:
            log.warning("%s left out: not installed", package)
            continue
        try:
            yield from list(ways())
        except ImportError as error:
            log.warning("%s left out: %s", package, error)


def _torch(inputs: Inputs) -> Tensor:
    return -F.linear_cross_entropy(inputs.hidden, inputs.weight, inputs.labels, reduction="none")


def _cce() -> Iterator[Way]:
    from cut_cross_entropy import linear_cross_entropy

    def logprob(inputs: Inputs, **options: object) -> Tensor:
        return -linear_cross_entropy(inputs.hidden, inputs.weight, inputs.labels, reduction="none", **options)

    if torch.cuda.is_available():
        yield of_logprob("cut-cross-entropy", logprob)
        yield of_logprob("cut-cross-entropy, unfiltered", lambda inputs: logprob(inputs, filter_eps=None))
    yield of_logprob("cut-cross-entropy, torch.compile", lambda inputs: logprob(inputs, impl="torch_compile"))


def _liger() -> Iterator[Way]:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    compiled = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False)

    def grpo(inputs: Inputs) -> Tensor:
        whole = torch.ones_like(inputs.labels)[None]
        return compiled(inputs.hidden[None], inputs.weight, inputs.labels[None], whole, inputs.weights[:1])[0]

    yield Way("Liger GRPO, chunked", grpo, same_loss=False)
    if torch.cuda.is_available():
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss()
        yield Way("Liger FLCE", lambda i: fused(i.weight, i.hidden, i.labels), same_loss=False)


def _trl() -> Iterator[Way]:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def chunked(inputs: Inputs) -> Tensor:
        arguments = (inputs.hidden, inputs.weight, None, inputs.labels, 1.0, 8192, None, 1.0, ("entropy",))
        return ChunkedLogProbFunction.apply(*arguments)[0]

    yield of_logprob("TRL, chunked + entropy", chunked)


def _verl() -> Iterator[Way]:
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    if torch.cuda.is_available():
        yield of_logprob("verl", lambda i: linear_cross_entropy(i.hidden, i.weight, i.labels, 1.0, "none")[0])
