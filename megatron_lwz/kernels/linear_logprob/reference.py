"""The oracle: plain torch and autograd on materialised logits [N, V / TP]."""

from __future__ import annotations

import torch

from megatron_lwz.kernels import collectives
from megatron_lwz.kernels.linear_logprob.problem import Problem, accumulation_dtype


def linear_logprob(
    hidden: torch.Tensor, weight: torch.Tensor, problem: Problem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logprob, entropy, lse), each [N]."""
    dtype = accumulation_dtype(hidden.dtype)
    logits = hidden.to(dtype) @ weight[: problem.valid].to(dtype).t() * problem.scale  # [N, valid]
    floor = logits.new_full((len(logits), 1), torch.finfo(dtype).min)
    highest = collectives.all_gather(torch.cat([logits.detach(), floor], 1).amax(1), problem.group).amax(0)
    exponentials = (logits - highest[:, None]).exp()
    total = collectives.sum_over(exponentials.sum(1), problem.group)
    mean = collectives.sum_over((exponentials * logits).sum(1), problem.group) / total  # E_p[z]
    own = problem.owned().nonzero().squeeze(1)
    chosen = logits.new_zeros(len(logits)).index_put((own,), logits[own, problem.labels[own]])
    lse = highest + total.log()
    return collectives.sum_over(chosen, problem.group) - lse, lse - mean, lse
