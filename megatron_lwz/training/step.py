"""One forward pass and one optimizer step, shared by all stages, through Megatron's pipeline schedules.

The schedule (none, 1F1B, interleaved) is Megatron's choice from the layout. Losses are sums; the step's global
denominator divides the summed gradient once, at its end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_lwz.distributed import exchange, groups, platform
from megatron_lwz.errors import LwzError
from megatron_lwz.kernels.linear_logprob import TokenLoss, cross_check
from megatron_lwz.models.logprobs import packed_params
from megatron_lwz.training.state import TrainState
from megatron_lwz.types import MicroBatch

LossFn = Callable[[torch.Tensor, MicroBatch, int], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(statistics [3, T], micro-batch, its index) → (loss summed over tokens, metric sums).

Every call of a step returns the same metric names. A name that ends with `/max` is max-reduced, others are summed.
"""

TokenLossFn = Callable[[MicroBatch, int], TokenLoss]
"""(micro-batch, its index) → the same loss as LossFn's, for differentiation in the forward pass."""

Accept = Callable[[float, float], bool]
"""(loss, gradient norm before clipping) → whether to take the step. Every rank asks it with the same numbers."""

Output = Callable[..., Any]


class TrainingError(LwzError):
    """A step that cannot go on: the gradient is not finite."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did; the same on every rank.

    `loss` is the summed loss over the denominator, `grad_norm` the global L2 norm before clipping, `metrics` the
    loss function's sums (or maxima) over all micro-batches, data-parallel and context-parallel ranks. A step that was
    refused is not `applied`: it changed no weight and no optimizer state.
    """

    loss: float
    grad_norm: float
    lr: float
    metrics: dict[str, float]
    applied: bool = True


def train_step(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    loss_fn: LossFn,
    denominator: int,
    token_loss: TokenLossFn | None = None,
    accept: Accept | None = None,
) -> StepResult:
    """Forward, backward and optimizer step over this data rank's micro-batches (equally many on every rank).

    With `token_loss` the gradient of the output layer is taken in the forward pass, and `loss_fn` only gives metrics.
    `accept` may refuse the step after the backward pass.

    `denominator` is global: what the loss, summed over all ranks, is divided by. The caller counts `state.step`, which
    sets the learning rate: several updates of one rollout batch share it. Raises TrainingError when the loss or
    the gradient is not finite.
    """
    for chunk in state.chunks:
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()
    lr = state.scheduler.apply(state.optimizer, state.step)
    reporter = dist.get_rank(groups.data_context_group()) == 0

    def finish(index: int, micro_batch: MicroBatch, output: Any) -> tuple[Any, ...]:
        if token_loss is None:
            loss, metrics = loss_fn(output, micro_batch, index)
        else:
            loss, statistics = output
            with torch.no_grad():
                _, metrics = loss_fn(statistics, micro_batch, index)
        # Megatron sums these counts over micro-batches and ranks and divides the gradient by the sum, once.
        count = denominator if reporter and index == 0 else 0
        sums = {"loss": loss.detach(), **{name: value.detach() for name, value in metrics.items()}}
        return loss, torch.tensor(count, dtype=torch.int, device=loss.device), sums

    with cross_check.watch(state.step + 1) as found:
        sums = _reduce(_run(state.chunks, micro_batches, finish, token_loss))
    if found is not None:
        sums["kernels/difference/max"] = exchange.largest(found.largest())
    loss = sums.pop("loss") / max(1, denominator)
    if accept is not None:
        state.optimizer.prepare_grads()
        grad_norm = float(state.optimizer.get_grad_norm())
        if not accept(loss, grad_norm):
            return StepResult(loss, grad_norm, lr, sums, applied=False)
    return StepResult(loss, _optimizer_step(state, loss), lr, sums)


def forward_statistics(state: TrainState, micro_batches: Sequence[MicroBatch]) -> list[torch.Tensor] | None:
    """Log-prob, entropy and log-sum-exp of every label: one [3, T] fp32 tensor per micro-batch, without gradient.

    None on ranks that do not hold the last pipeline stage.
    """
    return forward_chunks(state.chunks, micro_batches)


@torch.no_grad()
def forward_metrics(state: TrainState, micro_batches: Sequence[MicroBatch], loss_fn: LossFn) -> dict[str, float]:
    """The loss function's metrics and `loss` over all micro-batches and ranks, as `train_step` sums them, forward only."""

    def finish(index: int, micro_batch: MicroBatch, output: torch.Tensor, **_: bool) -> dict[str, torch.Tensor]:
        loss, metrics = loss_fn(output, micro_batch, index)
        return {"loss": loss, **metrics}

    return _reduce(_run(state.chunks, micro_batches, finish))


@torch.no_grad()
def forward_chunks(chunks: Sequence[torch.nn.Module], micro_batches: Sequence[MicroBatch]) -> list[torch.Tensor] | None:
    """`forward_statistics` for model chunks without an optimizer."""

    def finish(_index: int, _micro_batch: MicroBatch, statistics: torch.Tensor, **_: bool) -> torch.Tensor:
        return statistics

    results = _run(chunks, micro_batches, finish)
    return results if groups.is_last_stage() else None


def _run(
    chunks: Sequence[torch.nn.Module],
    micro_batches: Sequence[MicroBatch],
    finish: Output,
    token_loss: TokenLossFn | None = None,
) -> list[Any]:
    """Megatron's schedule over the micro-batches; what `finish` reported, per micro-batch, on the last stage.

    Forward and backward, or only forward where gradients are off.
    """

    def forward_step(source: Iterator[tuple[int, MicroBatch]], chunk: torch.nn.Module) -> tuple[torch.Tensor, Output]:
        index, micro_batch = next(source)
        micro_batch = _to_device(micro_batch)
        extra = {} if token_loss is None else {"token_loss": partial(token_loss, micro_batch, index)}
        output = chunk(
            micro_batch.tokens[None],
            micro_batch.positions[None],
            None,
            labels=micro_batch.labels[None],
            packed_seq_params=packed_params(micro_batch),
            **extra,
        )
        return output, lambda output, **options: finish(index, micro_batch, output, **options)

    forward_only = not torch.is_grad_enabled()
    sources = [iter(enumerate(micro_batches)) for _ in chunks]
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=sources if len(chunks) > 1 else sources[0],
        model=list(chunks) if len(chunks) > 1 else chunks[0],
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].tokens.numel(),  # unused: lengths vary and are sent ahead of each tensor
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )


def _to_device(micro_batch: MicroBatch) -> MicroBatch:
    device = platform.device()
    moved: dict[str, Any] = {
        field.name: value.to(device, non_blocking=True)
        for field in dataclasses.fields(micro_batch)
        if isinstance(value := getattr(micro_batch, field.name), torch.Tensor)
    }
    return dataclasses.replace(micro_batch, **moved)


def _reduce(reports: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Sums (or maxima) over micro-batches, DP and CP, from the last pipeline stage to every rank."""
    totals: dict[str, float] | None = None
    if groups.is_last_stage():
        names = sorted(reports[0])
        table = torch.stack([torch.stack([report[name].double() for name in names]) for report in reports])
        totals = {}
        for operation, chosen in (
            (dist.ReduceOp.SUM, [n for n in names if not n.endswith("/max")]),
            (dist.ReduceOp.MAX, [n for n in names if n.endswith("/max")]),
        ):
            if not chosen:
                continue
            columns = table[:, [names.index(name) for name in chosen]]
            values = columns.sum(0) if operation == dist.ReduceOp.SUM else columns.amax(0)
            dist.all_reduce(values, op=operation, group=groups.data_context_group())
            totals.update(zip(chosen, values.tolist(), strict=True))
    # The highest rank always holds the last stage: Megatron numbers pipeline stages slowest.
    source = dist.get_world_size() - 1
    return exchange.broadcast_json(totals if dist.get_rank() == source else None, source=source)


def _optimizer_step(state: TrainState, loss: float) -> float:
    """Steps the optimizer; returns the gradient norm. Raises TrainingError if it is not finite."""
    succeeded, grad_norm, _ = state.optimizer.step()
    if not succeeded or not math.isfinite(grad_norm) or not math.isfinite(loss):
        raise TrainingError(
            f"step {state.step}: loss {loss}, gradient norm {grad_norm}: not finite, so the run stops here; "
            "lower optimizer.lr or look at this step's data, then resume from the last checkpoint"
        )
    return float(grad_norm)
