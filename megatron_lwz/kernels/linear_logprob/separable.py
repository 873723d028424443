"""Log-probs as an ordinary differentiable function: any loss may follow, and its gradient arrives in the backward pass.

The backward pass computes the logits again (8·T·H·V FLOP in all), except for the tiles that the cache kept. It does so
only for rows whose gradient is not zero: clipped tokens and those without advantage cost nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_lwz.kernels import collectives
from megatron_lwz.kernels.linear_logprob import cross_check
from megatron_lwz.kernels.linear_logprob.epilogue import Epilogue, RowGradients, combine
from megatron_lwz.kernels.linear_logprob.head import Head, Tile, WeightGradient
from megatron_lwz.kernels.linear_logprob.passes import LogitsCache, Passes, Workspace
from megatron_lwz.kernels.linear_logprob.planner import Machine, Plan, Shape, plan_tiles
from megatron_lwz.kernels.linear_logprob.problem import Problem
from megatron_lwz.kernels.linear_logprob.rows import Chunk, HiddenGradient, cut, gathered
from megatron_lwz.kernels.settings import settings

_RECOMPUTE_BELOW = 2 / 3
"""Below this share of rows with gradient, recomputing their logits is cheaper than including all rows (6f < 4)."""


def linear_logprob(
    hidden: Tensor, weight: Tensor, problem: Problem, epilogue: Epilogue
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (logprob, entropy, lse), each [T], 0 where there is no label."""
    return _LinearLogprob.apply(hidden, weight, problem, epilogue)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, problem: Problem, epilogue: Epilogue) -> tuple[Tensor, ...]:
        head = Head(weight, problem.valid)
        plan = _plan(len(problem.selected), head, hidden.shape[1])
        chunks = cut(problem.selected, plan.rows, problem)
        passes = Passes(head, problem, epilogue, plan.columns)
        workspace = _workspace(chunks, plan, head)
        cache = LogitsCache(_cache_budget(chunks, plan, head) if any(ctx.needs_input_grad) else 0, head)
        outputs = torch.zeros(4, problem.tokens + 1, dtype=head.accumulation, device=hidden.device)
        for index, (chunk, x) in enumerate(gathered(hidden.to(head.dtype), chunks, problem)):

            def logits(x: Tensor, tile: Tile, index: int = index) -> Tensor:
                z = workspace.product(x, tile)
                cache.keep(index, tile, z)
                return z

            running = passes.statistics(chunk.rows, x, logits)
            outputs[:, chunk.rows] = torch.stack(combine(collectives.all_gather(running, problem.group)))
            cross_check.observe(x, weight, chunk.rows, outputs, problem)
        logprob, entropy, lse, mean = outputs
        ctx.save_for_backward(hidden, weight, lse, mean)
        ctx.problem, ctx.epilogue, ctx.plan, ctx.chunks, ctx.cache = problem, epilogue, plan, chunks, cache
        return logprob[:-1], entropy[:-1], lse[:-1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, weight, lse, mean = ctx.saved_tensors
        problem: Problem = ctx.problem
        head = Head(weight, problem.valid)
        gradients = torch.zeros(3, problem.tokens + 1, dtype=head.accumulation, device=hidden.device)
        gradients[:, problem.selected] = torch.stack(upstream)[:, problem.selected]
        active = (gradients != 0).any(0).nonzero().squeeze(1)
        cache, chunks, plan = ctx.cache, ctx.chunks, ctx.plan
        if not cache.budget or len(active) < _RECOMPUTE_BELOW * len(problem.selected):
            cache, plan = LogitsCache(0, head), _plan(len(active), head, hidden.shape[1])
            chunks = cut(active, plan.rows, problem)
        used = gradients.any(1).tolist()  # one wait for the GPU
        g, h, k = (row if any_used else None for row, any_used in zip(gradients, used, strict=True))
        passes = Passes(head, problem, ctx.epilogue, plan.columns)
        workspace = _workspace(chunks, plan, head)
        hidden_gradient = HiddenGradient(hidden, problem)
        weight_gradient = WeightGradient(head) if ctx.needs_input_grad[1] else None
        for index, (chunk, x) in enumerate(gathered(hidden.to(head.dtype), chunks, problem)):

            def logits(x: Tensor, tile: Tile, index: int = index) -> Tensor:
                kept = cache.take(index, tile)
                return workspace.product(x, tile) if kept is None else kept

            rows = chunk.rows
            per_row = RowGradients(
                lse[rows],
                mean[rows],
                (gradients[0] if g is None else g)[rows],
                None if h is None else h[rows],
                None if k is None else k[rows],
            )
            hidden_gradient.add(chunk, passes.gradient(rows, x, logits, per_row, weight_gradient))
        found = None if weight_gradient is None else weight_gradient.result()
        return hidden_gradient.result(), found, None, None


def _plan(rows: int, head: Head, hidden: int) -> Plan:
    shape = Shape(max(1, rows), hidden, len(head.parameter))  # the same on all ranks, unlike `valid`
    machine = Machine.of(head.parameter.device)
    return plan_tiles(shape, settings().workspace_bytes, machine, itemsize=head.accumulation.itemsize)


def _cache_budget(chunks: list[Chunk], plan: Plan, head: Head) -> int:
    """Returns 0 unless a whole tile fits.

    All ranks must agree on whether there is a cache, whatever their vocabulary.
    """
    budget = settings().cache_bytes
    first = len(chunks[0].rows) * plan.columns * head.accumulation.itemsize if chunks else 0
    return budget if budget >= first else 0


def _workspace(chunks: list[Chunk], plan: Plan, head: Head) -> Workspace:
    return Workspace(max((len(chunk.rows) for chunk in chunks), default=0), plan.columns, head)
