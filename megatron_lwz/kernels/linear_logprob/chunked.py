"""Bounded workspace: a few rows of logits at a time, computed again in the backward pass.

Per row and shard four numbers suffice: m = max z, s = Σ e^(z−m), w = Σ e^(z−m)·(z−m) and the label's logit. One
all-gather of them, combined in rank order, gives log-prob, entropy and lse, bitwise equal on all ranks. With
g, h, k the gradients of logprob, entropy and lse, and b = E_p[z], the gradient of a logit is
p·(k − g − h·(z − b)) + g·[label].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from megatron_lwz.kernels import collectives
from megatron_lwz.kernels.linear_logprob.problem import Problem, accumulation_dtype

_BUFFERS = 2
"""[rows, V / TP] tensors alive at a time."""


def linear_logprob(
    hidden: torch.Tensor, weight: torch.Tensor, problem: Problem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logprob, entropy, lse), each [N]."""
    return _LinearLogprob.apply(hidden, weight, problem)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, problem: Problem) -> tuple[torch.Tensor, ...]:
        statistics = hidden.new_empty(4, len(hidden), dtype=accumulation_dtype(hidden.dtype))
        for rows in _chunks(len(hidden), weight, problem):
            statistics[:, rows] = _shard_statistics(hidden[rows], weight, problem, rows)
        if len(hidden):
            logprob, entropy, lse, mean = _combine(collectives.all_gather(statistics, problem.group))
        else:
            logprob, entropy, lse, mean = statistics.unbind()
        ctx.save_for_backward(hidden, weight, lse, mean)
        ctx.problem = problem
        return logprob, entropy, lse

    @staticmethod
    def backward(
        ctx: Any, g: torch.Tensor, h: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        hidden, weight, lse, mean = ctx.saved_tensors
        problem: Problem = ctx.problem
        wide = lse.dtype
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if ctx.needs_input_grad[1] else None
        # Clipped and zero-advantage rows have no gradient: leave them out.
        active = ((g != 0) | (h != 0) | (k != 0)).nonzero().squeeze(1)
        flat = not bool((h != 0).any())
        for chunk in _chunks(len(active) if problem.valid else 0, weight, problem):
            rows = active[chunk]
            x = hidden[rows]
            z = _logits(x, weight, problem)  # [rows, valid]
            p = (z - lse[rows, None]).exp_()
            if flat:
                gradient = p.mul_((k - g)[rows, None])
            else:
                slope = z.sub_(mean[rows, None]).mul_(-h[rows, None]).add_((k - g)[rows, None])
                gradient = slope.mul_(p)
            own = problem.owned()[rows].nonzero().squeeze(1)
            gradient[own, problem.labels[rows][own]] += g[rows][own]
            gradient.mul_(problem.scale)
            grad_hidden[rows] = _product(gradient, weight[: problem.valid]).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight[: problem.valid].addmm_(gradient.t(), x.to(wide))
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None


def _chunks(count: int, weight: torch.Tensor, problem: Problem) -> Iterator[slice]:
    """Row ranges whose logits fit the workspace; at least one row each, the same on every rank."""
    row_bytes = _BUFFERS * weight.shape[0] * accumulation_dtype(weight.dtype).itemsize
    step = max(1, problem.workspace_bytes // row_bytes)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b with fp32 (fp64) accumulation and result; `b` may be bf16, `a` of either type."""
    wide = accumulation_dtype(b.dtype)
    if b.dtype == wide:
        return a.to(wide) @ b
    if b.is_cuda:
        return torch.mm(a.to(b.dtype), b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)


def _logits(x: torch.Tensor, weight: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Scaled logits [rows, valid] in the accumulation type."""
    z = _product(x, weight[: problem.valid].t())
    return z if problem.scale == 1.0 else z.mul_(problem.scale)


def _shard_statistics(x: torch.Tensor, weight: torch.Tensor, problem: Problem, rows: slice) -> torch.Tensor:
    """[4, rows]: max, Σe, Σe·(z − max) and the label's logit (0 on other shards)."""
    wide = accumulation_dtype(x.dtype)
    if not problem.valid:  # a finite floor keeps 0 · (m − M) from turning into NaN
        empty = torch.zeros(4, len(x), dtype=wide, device=x.device)
        empty[0] = torch.finfo(wide).min
        return empty
    z = _logits(x, weight, problem)
    labels, owned = problem.labels[rows], problem.owned()[rows]
    chosen = z.gather(1, labels.clamp(0, problem.valid - 1)[:, None]).squeeze(1).where(owned, z.new_zeros(()))
    highest = z.amax(1)
    e = z.sub_(highest[:, None]).exp()
    total = e.sum(1)
    return torch.stack([highest, total, e.mul_(z).sum(1), chosen])


def _combine(shards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[TP, 4, N] in rank order → logprob, entropy, lse and mean logit E_p[z], each [N]."""
    m, s, w, chosen = shards.unbind(1)
    highest = m.amax(0)
    offset = m - highest
    factor = offset.exp()
    total = (factor * s).sum(0)
    mean = (factor * (w + s * offset)).sum(0) / total  # relative to `highest`
    log_total = total.log()
    lse = highest + log_total
    return chosen.sum(0) - lse, log_total - mean, lse, highest + mean
