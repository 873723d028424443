"""The oracle: plain torch and autograd on materialised logits [N, V / TP]."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_lwz.kernels import collectives
from megatron_lwz.kernels.linear_logprob.problem import Problem, accumulation_dtype
from megatron_lwz.kernels.linear_logprob.token_loss import TokenLoss


def linear_logprob(hidden: Tensor, weight: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (logprob, entropy, lse), each [T], 0 where there is no label."""
    whole = collectives.whole_hidden(hidden, problem.group, sequence_parallel=problem.sequence_parallel)
    rows = problem.selected
    found = of_rows(whole[rows], weight, problem.labels[rows], problem)
    logprob, entropy, lse = (values.new_zeros(problem.tokens).index_put((rows,), values) for values in found)
    return logprob, entropy, lse


def linear_loss(
    hidden: Tensor, weight: Tensor, problem: Problem, token_loss: TokenLoss
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, logprob, entropy, lse). The loss's own derivatives reach autograd as a first-order surrogate."""
    outputs = linear_logprob(hidden, weight, problem)
    rows = problem.selected
    logprob, entropy, lse = (values[rows] for values in outputs)
    # One shard whose statistics combine to exactly these values: m = lse, s = 1, w = −entropy.
    shard = torch.stack([lse, torch.ones_like(lse), -entropy, logprob + lse]).detach()
    step = token_loss(shard[None], rows)
    found = step.gradients
    change = logprob.new_zeros(())
    for values, slope in ((logprob, found.logprob), (entropy, found.entropy), (lse, found.lse_gradient)):
        if slope is not None:
            change = change + (slope * (values - values.detach())).sum()
    logprob, entropy, lse = (values.detach() for values in outputs)
    return step.loss + change, logprob, entropy, lse


def of_rows(x: Tensor, weight: Tensor, labels: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (logprob, entropy, lse), each [n], of whole rows x [n, H] with labels [n] relative to this shard."""
    dtype = accumulation_dtype(x.dtype)
    logits = x.to(dtype) @ weight[: problem.valid].to(dtype).t() * problem.scale  # [n, valid]
    floor = logits.new_full((len(logits), 1), torch.finfo(dtype).min)
    highest = collectives.all_gather(torch.cat([logits.detach(), floor], 1).amax(1), problem.group).amax(0)
    exponentials = (logits - highest[:, None]).exp()
    total = collectives.sum_over(exponentials.sum(1), problem.group)
    mean = collectives.sum_over((exponentials * logits).sum(1), problem.group) / total  # E_p[z]
    own = ((labels >= 0) & (labels < problem.valid)).nonzero().squeeze(1)
    chosen = logits.new_zeros(len(logits)).index_put((own,), logits[own, labels[own]])
    lse = highest + total.log()
    return collectives.sum_over(chosen, problem.group) - lse, lse - mean, lse
