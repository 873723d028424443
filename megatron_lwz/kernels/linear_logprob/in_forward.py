"""A token-level loss with its gradient in the forward pass, on the same logits: 6·T·H·V FLOP, memory of one chunk.

Per chunk of whole rows: logits and statistics, one all-gather of the statistics, the loss of these tokens and its
derivatives, the gradient of the logits in their own memory, dX and dW. Under tensor parallelism the next chunk's
logits are computed while the all-gather is under way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_lwz.kernels import collectives
from megatron_lwz.kernels.linear_logprob import cross_check
from megatron_lwz.kernels.linear_logprob.epilogue import Epilogue
from megatron_lwz.kernels.linear_logprob.head import Head, WeightGradient
from megatron_lwz.kernels.linear_logprob.passes import Passes, Workspace, held, into
from megatron_lwz.kernels.linear_logprob.planner import Machine, Shape, plan_rows
from megatron_lwz.kernels.linear_logprob.problem import Problem
from megatron_lwz.kernels.linear_logprob.rows import Chunk, HiddenGradient, cut, gathered
from megatron_lwz.kernels.linear_logprob.token_loss import TokenLoss
from megatron_lwz.kernels.settings import settings


def linear_loss(
    hidden: Tensor, weight: Tensor, problem: Problem, epilogue: Epilogue, token_loss: TokenLoss
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (loss, logprob, entropy, lse): a scalar with gradient, and [T] each without."""
    return _LinearLoss.apply(hidden, weight, problem, epilogue, token_loss)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, problem: Problem, epilogue: Epilogue, token_loss: TokenLoss
    ) -> tuple[Tensor, ...]:
        head = Head(weight, problem.valid)
        differentiate = any(ctx.needs_input_grad)
        hidden_gradient = HiddenGradient(hidden, problem)
        weight_gradient = WeightGradient(head) if ctx.needs_input_grad[1] else None
        outputs = torch.zeros(3, problem.tokens + 1, dtype=head.accumulation, device=hidden.device)
        loss = outputs.new_zeros(())
        for passes, chunk in _computed(hidden, head, problem, epilogue):
            rows = chunk.rows.rows
            step = token_loss(chunk.shards.wait(), rows)
            outputs[:, rows] = torch.stack([step.logprob, step.entropy, step.lse])
            loss += step.loss
            cross_check.observe(chunk.x, weight, rows, outputs, problem)
            if differentiate:
                share = passes.gradient(rows, chunk.x, held(chunk.z), step.gradients, weight_gradient)
                hidden_gradient.add(chunk.rows, share)
        ctx.hidden_gradient, ctx.weight_gradient = hidden_gradient, weight_gradient
        logprob, entropy, lse = outputs[:, :-1]
        ctx.mark_non_differentiable(logprob, entropy, lse)
        return loss, logprob, entropy, lse

    @staticmethod
    def backward(ctx: Any, factor: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_gradient, weight_gradient = ctx.hidden_gradient, ctx.weight_gradient
        # Drop the references: autograd copies a gradient that another object still references.
        ctx.hidden_gradient = ctx.weight_gradient = None
        if hidden_gradient is None:
            raise RuntimeError("a loss differentiated in its forward pass has one backward pass")
        found = None
        if weight_gradient is not None:
            weight_gradient.scale(factor)
            found = weight_gradient.result()
        hidden = hidden_gradient.result()
        return hidden.mul_(factor.to(hidden.dtype)), found, None, None, None


@dataclass(frozen=True)
class _Computed:
    """A chunk whose logits z [n, valid] are held and whose statistics are being gathered."""

    rows: Chunk
    x: Tensor
    z: Tensor
    shards: collectives.Gathering


def _computed(hidden: Tensor, head: Head, problem: Problem, epilogue: Epilogue) -> Iterator[tuple[Passes, _Computed]]:
    """Yields every chunk. With more than one rank, one chunk is computed ahead."""
    ahead = int(collectives.size(problem.group) > 1)
    # The plan must be the same on all ranks: the shard's rows are, its true vocabulary is not.
    shape = Shape(max(1, len(problem.selected)), hidden.shape[1], len(head.parameter))
    budget = settings().workspace_bytes // (1 + ahead)
    plan = plan_rows(shape, budget, Machine.of(hidden.device), itemsize=head.accumulation.itemsize)
    chunks = cut(problem.selected, plan.rows, problem)
    longest = max((len(chunk.rows) for chunk in chunks), default=0)
    workspaces = [Workspace(longest, head.valid, head) for _ in range(min(1 + ahead, len(chunks)))]
    passes = Passes(head, problem, epilogue, plan.columns)
    waiting: list[_Computed] = []
    for index, (chunk, x) in enumerate(gathered(hidden.to(head.dtype), chunks, problem)):
        z = workspaces[index % len(workspaces)].cut(len(chunk.rows), head.valid)
        running = passes.statistics(chunk.rows, x, into(z, head))
        waiting.append(_Computed(chunk, x, z, collectives.start_all_gather(running, problem.group)))
        if len(waiting) > ahead:
            yield passes, waiting.pop(0)
    for computed in waiting:
        yield passes, computed
