"""The GRPO loss in one launch: from gathered statistics, or from log-probs, to loss, gradients and metrics.

The fused twin of `algorithms/grpo.py`, with the same results for every option; the tests hold the two together.
Needs Triton. Sums run in a fixed order without atomics, so a result is the same, bit for bit, from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.kernels.grpo_loss import launch
from megatron_lwz.kernels.grpo_loss.launch import ContextSum, TokenInputs
from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients
from megatron_lwz.kernels.linear_logprob.token_loss import TokenStep

__all__ = ["ContextSum", "FusedGrpoLoss", "TokenInputs", "fused_grpo_loss"]


class FusedGrpoLoss:
    """A `TokenLoss` (linear_logprob/token_loss.py) with one launch per call.

    It keeps the metric partials of its calls.
    """

    def __init__(self, inputs: TokenInputs, section: GrpoSection) -> None:
        """Rows are indices into the tensors of `inputs` [T]; row number T is padding."""
        launch.check(inputs, section)
        if not section.is_token_level(old_is_policy=inputs.old is None):
            raise ValueError("grpo.ratio, grpo.mismatch: sequence needs all log-probs first; use fused_grpo_loss")
        self._inputs, self._section = inputs, section
        self._partials: list[Tensor] = []

    def __call__(self, shards: Tensor, rows: Tensor) -> TokenStep:
        """`shards` [R, 4, n] are fp32 statistics of the rows numbered `rows` [n] int64.

        Same contract as `TokenLoss`.
        """
        out, partials = launch.token_loss(shards.contiguous(), self._inputs, self._section, rows=rows.contiguous())
        self._partials.append(partials)
        g, h, logprob, entropy, lse, mean = out.unbind()
        gradients = RowGradients(lse, mean, g, h if self._section.entropy_coefficient else None, None)
        return TokenStep(logprob, entropy, lse, launch.loss_of(partials), gradients)

    def metrics(self) -> dict[str, Tensor]:
        """Returns metrics over all rows so far, as scalars on the device, with the names and values of `grpo_loss`."""
        if not self._partials:
            return launch.no_metrics(self._inputs.weight.device)
        return launch.metrics_of(self._partials)


def fused_grpo_loss(
    logprob: Tensor,
    entropy: Tensor,
    inputs: TokenInputs,
    section: GrpoSection,
    *,
    sequence_ids: Tensor,
    sequences: int,
    context_sum: ContextSum,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns (Σ weight · token loss, metric sums) of log-probs and entropies [T] fp32, differentiable in both.

    `sequence_ids` [T] int64 in [0, sequences), −1 on padding; read for sequence-level options only. `context_sum` adds
    a [2, sequences] tensor over context-parallel ranks. It is called for sequence-level options only, the same number
    of times on every rank.
    """
    launch.check(inputs, section)
    with torch.no_grad():
        values = logprob.detach().contiguous()
        means = launch.sequence_means(
            values, inputs, section, ids=sequence_ids.contiguous(), sequences=sequences, context_sum=context_sum
        )
        out, partials = launch.token_loss(values, inputs, section, entropy=entropy.detach().contiguous(), means=means)
    h = out[1] if section.entropy_coefficient else None
    loss = _WithGradients.apply(logprob, entropy, launch.loss_of(partials), out[0], h)
    return loss, launch.metrics_of([partials])


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are already computed."""

    @staticmethod
    def forward(ctx: Any, logprob: Tensor, entropy: Tensor, loss: Tensor, g: Tensor, h: Tensor | None) -> Tensor:
        ctx.save_for_backward(g, h)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        g, h = ctx.saved_tensors
        return gradient * g, None if h is None else gradient * h, None, None, None
