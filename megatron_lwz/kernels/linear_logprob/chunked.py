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


def linear_logprob(
    hidden: torch.Tensor, weight: torch.Tensor, problem: Problem
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logprob, entropy, lse), each [N]."""
    return _LinearLogprob.apply(hidden, weight, problem)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, problem: Problem) -> tuple[torch.Tensor, ...]:
        shard = _Shard(weight, problem, len(hidden))
        statistics = hidden.new_zeros(4, len(hidden), dtype=shard.dtype)
        statistics[0] = torch.finfo(
            shard.dtype
        ).min  # of a shard without vocabulary; −inf would make NaN of 0 · (m − M)
        for rows in shard.chunks(len(hidden)):
            statistics[:, rows] = shard.statistics(hidden[rows], problem.labels[rows])
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
        active = ((g != 0) | (h != 0) | (k != 0)).nonzero().squeeze(1)  # not so: clipped and zero-advantage rows
        per_row = torch.stack([lse, mean, g, h, k])
        with_entropy = bool((h != 0).any())
        shard = _Shard(weight, problem, len(active))
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=shard.dtype) if ctx.needs_input_grad[1] else None
        for chunk in shard.chunks(len(active)):
            rows = active[chunk]
            gradient = shard.gradient(
                hidden[rows], problem.labels[rows], per_row[:, rows, None], with_entropy=with_entropy
            )
            grad_hidden[rows] = _product(gradient, shard.matrix).to(hidden.dtype)
            if grad_weight is not None:
                _accumulate(grad_weight[: problem.valid], gradient, hidden[rows])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None


class _Shard:
    """This rank's true vocabulary and the two buffers [rows, valid] that every chunk of logits shares."""

    def __init__(self, weight: torch.Tensor, problem: Problem, count: int) -> None:
        self._problem = problem
        self.dtype = accumulation_dtype(weight.dtype)
        matrix = weight[: problem.valid]
        # CPUs have no bf16 product with an fp32 result, so the weight is widened, once per pass.
        self.matrix = matrix if matrix.is_cuda else matrix.to(self.dtype)
        per_row = 2 * weight.shape[0] * self.dtype.itemsize
        self._step = max(1, problem.workspace_bytes // per_row)
        self._buffers = matrix.new_empty(2, min(self._step, count), problem.valid, dtype=self.dtype)

    def chunks(self, count: int) -> Iterator[slice]:
        """Row ranges whose logits fit the workspace, one row at least; none on a shard without vocabulary."""
        if not self._problem.valid:
            return iter(())
        return (slice(start, min(start + self._step, count)) for start in range(0, count, self._step))

    def _logits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled logits [rows, valid] in the first buffer, and the second one."""
        z, spare = self._buffers[:, : len(x)]
        _product(x, self.matrix.t(), out=z)
        return (z if self._problem.scale == 1.0 else z.mul_(self._problem.scale)), spare

    def statistics(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[4, rows]: m, s, w and the label's logit (0 where another shard has it)."""
        z, spare = self._logits(x)
        own = (labels >= 0) & (labels < self._problem.valid)
        chosen = z.gather(1, labels.clamp(0, self._problem.valid - 1)[:, None]).squeeze(1) * own
        highest = z.amax(1)
        e = torch.exp(z.sub_(highest[:, None]), out=spare)
        return torch.stack([highest, e.sum(1), e.mul_(z).sum(1), chosen])

    def gradient(
        self, x: torch.Tensor, labels: torch.Tensor, per_row: torch.Tensor, *, with_entropy: bool
    ) -> torch.Tensor:
        """[rows, valid] gradient of the unscaled logits; `per_row` [5, rows, 1] holds lse, mean, g, h, k."""
        lse, mean, g, h, k = per_row
        z, spare = self._logits(x)
        p = torch.sub(z, lse, out=spare).exp_()
        gradient = z.sub_(mean).mul_(-h).add_(k - g).mul_(p) if with_entropy else p.mul_(k - g)
        own = ((labels >= 0) & (labels < self._problem.valid)).nonzero().squeeze(1)
        gradient[own, labels[own]] += g[own, 0]
        return gradient if self._problem.scale == 1.0 else gradient.mul_(self._problem.scale)


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b, accumulated and returned in fp32 (fp64); in bf16 on a GPU when `b` is bf16."""
    wide = accumulation_dtype(b.dtype)
    if b.dtype == wide:
        return torch.mm(a.to(wide), b, out=out)
    return torch.mm(a.to(b.dtype), b, out_dtype=wide, out=out)


def _accumulate(total: torch.Tensor, gradient: torch.Tensor, x: torch.Tensor) -> None:
    """total += gradientᵀ · x, in fp32 (fp64)."""
    if x.dtype != total.dtype and x.is_cuda:
        total.add_(torch.mm(gradient.to(x.dtype).t(), x, out_dtype=total.dtype))
    else:
        total.addmm_(gradient.t(), x.to(total.dtype))


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
