"""A loss that can be differentiated while the forward pass still holds the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients, combine

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Function (logprob, entropy, lse, rows), each [n] → the summed loss of these rows.

The loss is a scalar, differentiable in the first three.
"""


@dataclass(frozen=True)
class TokenStep:
    """Result for n rows: log-probs, the loss summed over them (a scalar tensor), and inputs of the logits' gradient."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor
    loss: Tensor
    gradients: RowGradients


class TokenLoss(Protocol):
    """A token-level loss: dL/dlogprob of a token depends on that token alone, and the normaliser is known before."""

    def __call__(self, shards: Tensor, rows: Tensor) -> TokenStep:
        """`shards` [TP, 4, n]: the ranks' statistics of n rows, numbered `rows` [n] int64 in [0, T].

        T is a padding row: it must get zero loss and zero gradients. Every rank computes the same, bit for bit.
        """
        ...


class AutogradTokenLoss:
    """Any differentiable function of log-prob, entropy and lse as a TokenLoss, by autograd on n numbers each."""

    def __init__(self, loss: Loss, tokens: int) -> None:
        """`tokens` is T: rows with that number are padding and never reach `loss`."""
        self._loss = loss
        self._tokens = tokens

    def __call__(self, shards: Tensor, rows: Tensor) -> TokenStep:
        """Implements `TokenLoss`."""
        logprob, entropy, lse, mean = combine(shards)
        gradients = logprob.new_zeros(3, len(rows))
        kept = (rows < self._tokens).nonzero().squeeze(1)
        with torch.enable_grad():
            leaves = [value[kept].requires_grad_() for value in (logprob, entropy, lse)]
            loss = self._loss(leaves[0], leaves[1], leaves[2], rows[kept])
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        for row, gradient in zip(gradients, found, strict=True):
            if gradient is not None:
                row[kept] = gradient
        g, h, k = (None if f is None else row for f, row in zip(found, gradients, strict=True))
        zeros = gradients[0] if g is None else g
        return TokenStep(logprob, entropy, lse, loss.detach(), RowGradients(lse, mean, zeros, h, k))
