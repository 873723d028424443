"""The GRPO loss of an update's micro-batches, in the two forms that a step can use.

On a GPU with Triton, each form is one launch (`kernels/grpo_loss`). Elsewhere, and for a custom loss function, the
formulas of `algorithms/grpo.py` run as torch operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from megatron_lwz.algorithms.grpo import LossInputs, grpo_loss
from megatron_lwz.algorithms.loss_function import load_loss_function
from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.distributed import groups
from megatron_lwz.kernels.linear_logprob import AutogradTokenLoss, TokenLoss
from megatron_lwz.kernels.settings import settings
from megatron_lwz.training.step import TokenLossFn, to_device
from megatron_lwz.types import MicroBatch

if TYPE_CHECKING:
    from megatron_lwz.kernels.grpo_loss import FusedGrpoLoss, TokenInputs


class GrpoObjective:
    """The GRPO loss: `loss` after the forward pass, for every option; `token_loss` in it, for token-level ones."""

    def __init__(
        self,
        section: GrpoSection,
        sequences: int,
        old: Sequence[Tensor] | None = None,
        reference: Sequence[Tensor] | None = None,
    ) -> None:
        """`old` and `reference` are [T] fp32 per micro-batch.

        old None: the policy has not changed since the rollouts.
        """
        self._section = section
        self._sequences = sequences
        self._old = old
        self._reference = reference
        self._function = load_loss_function(section.loss_function)
        self._fused = settings().backend in ("triton", "cuda") and self._function is None
        self._launched: dict[int, FusedGrpoLoss] = {}

    @property
    def token_loss(self) -> TokenLossFn | None:
        """Returns the loss for the gradient in the forward pass; None for a loss that depends on whole sequences."""
        if not self._section.is_token_level(old_is_policy=self._old is None):
            return None
        if self._function is not None and self._function.sequence_level:
            return None
        return self._fused_token_loss if self._fused else self._token_loss

    def loss(self, statistics: Tensor, micro: MicroBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (summed loss, metric sums) of the statistics [3, T].

        After a fused `token_loss` it returns metrics only.
        """
        logprob, entropy, _ = statistics
        if index in self._launched:
            return logprob.new_zeros(()), self._launched.pop(index).metrics()
        if not self._fused:
            inputs = self._inputs(micro, index, logprob, entropy, None)
            return grpo_loss(inputs, self._section, context_sum=_context_sum, policy_loss=self._function)
        from megatron_lwz.kernels.grpo_loss import fused_grpo_loss  # needs Triton

        return fused_grpo_loss(
            logprob,
            entropy,
            self._token_inputs(micro, index),
            self._section,
            sequence_ids=micro.sequence_ids,
            sequences=self._sequences,
            context_sum=_context_sum,
        )

    def token_losses(self, statistics: Tensor, micro: MicroBatch, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (weighted loss, |log old − log behaviour|, sequence id) of the T' tokens that count, each [T'].

        The losses add up to `loss`. They are the loss's derivatives by the weights, so a `grpo.loss_function` must not
        read `weight`. Always computed with torch operations.
        """
        logprob, entropy, _ = statistics
        micro = to_device(micro)
        inputs = self._inputs(micro, index, logprob, entropy, None)
        weight = inputs.weight.clone().requires_grad_()
        with torch.enable_grad():
            total, _ = grpo_loss(
                replace(inputs, weight=weight), self._section, context_sum=_context_sum, policy_loss=self._function
            )
        (loss,) = torch.autograd.grad(total, weight)
        used = inputs.weight > 0
        return (loss * inputs.weight)[used], (inputs.old - inputs.behaviour).abs()[used], inputs.sequence_ids[used]

    def _token_loss(self, micro: MicroBatch, index: int) -> TokenLoss:
        def loss(logprob: Tensor, entropy: Tensor, _lse: Tensor, rows: Tensor) -> Tensor:
            inputs = self._inputs(micro, index, logprob, entropy, rows)
            # No sum over ranks: a sequence's ratio is only used here where it is 1 for each of its tokens.
            return grpo_loss(inputs, self._section, context_sum=lambda sums: sums, policy_loss=self._function)[0]

        return AutogradTokenLoss(loss, micro.labels.numel())

    def _fused_token_loss(self, micro: MicroBatch, index: int) -> TokenLoss:
        from megatron_lwz.kernels.grpo_loss import FusedGrpoLoss  # needs Triton

        self._launched[index] = FusedGrpoLoss(self._token_inputs(micro, index), self._section)
        return self._launched[index]

    def _token_inputs(self, micro: MicroBatch, index: int) -> TokenInputs:
        from megatron_lwz.kernels.grpo_loss import TokenInputs  # needs Triton

        return TokenInputs(
            old=None if self._old is None else self._old[index],
            behaviour=micro.behaviour_logprobs,
            reference=None if self._reference is None else self._reference[index],
            advantage=micro.advantages,
            weight=micro.weights,
        )

    def _inputs(
        self, micro: MicroBatch, index: int, logprob: Tensor, entropy: Tensor, rows: Tensor | None
    ) -> LossInputs:
        """Returns the loss inputs of the micro-batch's tokens, or of those numbered `rows`."""

        def of(values: Tensor) -> Tensor:
            return values if rows is None else values[rows]

        return LossInputs(
            logprob=logprob,
            entropy=entropy,
            old=logprob.detach() if self._old is None else of(self._old[index]),
            behaviour=of(micro.behaviour_logprobs),
            reference=None if self._reference is None else of(self._reference[index]),
            advantage=of(micro.advantages),
            weight=of(micro.weights),
            sequence_ids=of(micro.sequence_ids),
            sequences=self._sequences,
        )


def _context_sum(values: Tensor) -> Tensor:
    """Sums over context-parallel ranks.

    The step's loss is the sum of theirs, so the gradient is summed in backward too.
    """
    if groups.context_size() == 1:
        return values
    return all_reduce(values, group=groups.context_group())
