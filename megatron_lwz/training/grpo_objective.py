"""The GRPO loss of an update's micro-batches, in the two forms a step can use."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from megatron_lwz.algorithms.grpo import LossInputs, grpo_loss, is_token_level
from megatron_lwz.config.sections import GrpoSection
from megatron_lwz.distributed import groups
from megatron_lwz.kernels.linear_logprob import AutogradTokenLoss, TokenLoss
from megatron_lwz.training.step import TokenLossFn
from megatron_lwz.types import MicroBatch


class GrpoObjective:
    """`loss` after the forward pass, for every option; `token_loss` within it, for token-level options."""

    def __init__(
        self,
        section: GrpoSection,
        sequences: int,
        old: Sequence[Tensor] | None = None,
        reference: Sequence[Tensor] | None = None,
    ) -> None:
        """`old` and `reference` are [T] fp32 per micro-batch; old None: the policy has not moved since it wrote them."""
        self._section = section
        self._sequences = sequences
        self._old = old
        self._reference = reference

    def loss(self, statistics: Tensor, micro: MicroBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(summed loss, metric sums) of the statistics [3, T]."""
        logprob, entropy, _ = statistics
        inputs = self._inputs(micro, index, logprob, entropy, None)
        return grpo_loss(inputs, self._section, context_sum=_context_sum)

    @property
    def token_loss(self) -> TokenLossFn | None:
        """The loss for the gradient in the forward pass; None when a token's loss depends on its whole sequence."""
        return self._token_loss if is_token_level(self._section) else None

    def _token_loss(self, micro: MicroBatch, index: int) -> TokenLoss:
        def loss(logprob: Tensor, entropy: Tensor, _lse: Tensor, rows: Tensor) -> Tensor:
            inputs = self._inputs(micro, index, logprob, entropy, rows)
            return grpo_loss(inputs, self._section, context_sum=_context_sum)[0]

        return AutogradTokenLoss(loss, micro.labels.numel())

    def _inputs(
        self, micro: MicroBatch, index: int, logprob: Tensor, entropy: Tensor, rows: Tensor | None
    ) -> LossInputs:
        """Of the micro-batch's tokens, or of those numbered `rows`."""

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
    if groups.context_size() > 1:
        dist.all_reduce(values, group=groups.context_group())
    return values
