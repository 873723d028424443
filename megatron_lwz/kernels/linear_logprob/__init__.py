"""Log-prob, entropy and log-sum-exp of labels under softmax(hidden · weightᵀ / temperature), vocabulary-parallel."""

from __future__ import annotations

import torch

from megatron_lwz.kernels import collectives, dispatch
from megatron_lwz.kernels.linear_logprob import reference
from megatron_lwz.kernels.linear_logprob.problem import Problem
from megatron_lwz.types import IGNORED_LABEL

__all__ = ["linear_logprob"]

_IMPLEMENTATIONS = {"reference": reference.linear_logprob, "chunked": reference.linear_logprob}


def linear_logprob(  # noqa: PLR0913 (the signature is shared by every implementation)
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    vocab_start: int = 0,
    vocab_size: int,
    tp_group: torch.distributed.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    shift: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logprob, entropy, lse), each [T] fp32 in nats, all differentiable in `hidden` and `weight`.

    hidden: [T, H], or this rank's [T / TP, H] with `sequence_parallel`; the op gathers it and reduce-scatters its
        gradient (it all-reduces the gradient otherwise).
    weight: [V / TP, H], rows `vocab_start …` of the padded vocabulary. Rows from `vocab_size` (the true vocabulary)
        on take no part and get exactly zero gradient.
    labels: [T] int64, the same on all ranks of `tp_group`. Rows labelled IGNORED_LABEL cost nothing; their outputs are 0.
    shift: [T], for storage of logits below fp32 (rounding around an earlier lse). The implementations here
        keep logits in fp32, where a shift changes nothing, so they do not read it.

    Products accumulate in fp32 for bf16 inputs; fp64 inputs stay fp64 (the oracle of the tests). Outputs are bitwise equal
    on all ranks of `tp_group` and from run to run. The logits held at a time fit `kernels.workspace_mib` with `chunked`.
    """
    hidden = collectives.whole_hidden(hidden, tp_group, sequence_parallel=sequence_parallel)
    rows = (labels != IGNORED_LABEL).nonzero().squeeze(1)
    problem = Problem(
        labels=labels[rows] - vocab_start,
        valid=max(0, min(weight.shape[0], vocab_size - vocab_start)),
        scale=1.0 / temperature,
        group=tp_group,
        workspace_bytes=dispatch.settings().workspace_bytes,
    )
    outputs = _IMPLEMENTATIONS[dispatch.settings().backend](hidden[rows], weight, problem)
    logprob, entropy, lse = (o.new_zeros(labels.shape).index_put((rows,), o) for o in outputs)
    return logprob, entropy, lse
