"""Log-prob, entropy and log-sum-exp of labels under softmax(hidden · weightᵀ / temperature), vocabulary-parallel.

Two operators over the same passes: `linear_logprob` for any loss, `linear_loss` for losses that are differentiated in
the forward pass. Neither holds T × V numbers; what they hold fits `kernels.workspace_mib` (one row at least) and
`kernels.cache_mib`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_lwz.kernels.linear_logprob import implementations, in_forward, reference, separable
from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients
from megatron_lwz.kernels.linear_logprob.problem import make_problem
from megatron_lwz.kernels.linear_logprob.token_loss import AutogradTokenLoss, TokenLoss, TokenStep
from megatron_lwz.kernels.settings import settings

__all__ = ["AutogradTokenLoss", "RowGradients", "TokenLoss", "TokenStep", "linear_logprob", "linear_loss"]


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    vocab_start: int = 0,
    vocab_size: int,
    tp_group: torch.distributed.ProcessGroup | None = None,
    sequence_parallel: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (logprob, entropy, lse), each [T] fp32 in nats, all differentiable in `hidden` and `weight`.

    hidden: [T, H], or this rank's [T / TP, H] with `sequence_parallel`; the op gathers it chunk by chunk and
        reduce-scatters its gradient (it all-reduces the gradient otherwise).
    weight: [V / TP, H], rows `vocab_start …` of the padded vocabulary. Rows from `vocab_size` (the true vocabulary)
        on take no part and get exactly zero gradient. A parameter with Megatron's `main_grad` gets its gradient there.
    labels: [T] int64, the same on all ranks of `tp_group`. Rows labelled IGNORED_LABEL cost nothing; their outputs are 0.

    Products accumulate in fp32 for bf16 inputs; fp64 inputs stay fp64 (the oracle of the tests). Outputs are bitwise
    equal on all ranks of `tp_group` and from run to run.
    """
    problem = make_problem(
        labels,
        shard_rows=weight.shape[0],
        temperature=temperature,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        tp_group=tp_group,
        sequence_parallel=sequence_parallel,
    )
    backend = settings().backend
    if backend == "reference":
        return reference.linear_logprob(hidden, weight, problem)
    return separable.linear_logprob(hidden, weight, problem, implementations.epilogue(backend))


def linear_loss(  # noqa: PLR0913 (the signature of linear_logprob, and the loss)
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    token_loss: TokenLoss,
    *,
    temperature: float = 1.0,
    vocab_start: int = 0,
    vocab_size: int,
    tp_group: torch.distributed.ProcessGroup | None = None,
    sequence_parallel: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, logprob, entropy, lse): `token_loss` summed over the labelled rows, and its [T] fp32 inputs.

    Only the loss carries gradient. The gradient is computed in the forward pass, a quarter cheaper than with
    `linear_logprob`. dW is added to a parameter's `main_grad` at once, so backward must not scale the loss (ValueError,
    or a device assertion). The other arguments are those of `linear_logprob`.
    """
    problem = make_problem(
        labels,
        shard_rows=weight.shape[0],
        temperature=temperature,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        tp_group=tp_group,
        sequence_parallel=sequence_parallel,
    )
    backend = settings().backend
    if backend == "reference":
        return reference.linear_loss(hidden, weight, problem, token_loss)
    return in_forward.linear_loss(hidden, weight, problem, implementations.epilogue(backend), token_loss)
