"""One forward pass and one optimizer step, shared by all stages, through Megatron's pipeline schedules.

The schedule (none, 1F1B, interleaved) is Megatron's choice from the layout; it leaves the gradients unreduced. Losses are
sums; the step's global denominator divides the summed gradient once, at its end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_lwz.distributed import exchange, groups, heartbeat, platform
from megatron_lwz.errors import LwzError
from megatron_lwz.kernels.linear_logprob import TokenLoss, cross_check
from megatron_lwz.models.logprobs import packed_params
from megatron_lwz.training.optimizer import apply_gradients
from megatron_lwz.training.state import TrainState
from megatron_lwz.training.step_memory import check_memory, explained
from megatron_lwz.types import MicroBatch

LossFn = Callable[[torch.Tensor, MicroBatch, int], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(statistics [3, T], micro-batch, its index) → (loss summed over tokens, metric sums).

All calls within a step return the same metric names. A name that ends with `/max` is max-reduced, others are summed.
"""
_MAXIMUM = "/max"

TokenLossFn = Callable[[MicroBatch, int], TokenLoss]
"""(micro-batch, its index) → the same loss as LossFn's, for differentiation in the forward pass."""

Output = Callable[..., Any]


class TrainingError(LwzError):
    """Raised when a step cannot continue: the gradient is not finite."""


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step; the same on every rank.

    `loss` is the summed loss over the denominator. `grad_norm` is the global L2 norm before clipping. `metrics` holds
    the loss function's sums (or maxima) over all micro-batches, data-parallel and context-parallel ranks. A refused
    step is not `applied`: it changed no weight and no optimizer state.
    """

    loss: float
    grad_norm: float
    lr: float
    metrics: dict[str, float]
    applied: bool = True


Accept = Callable[[StepResult], bool]
"""(what is known of a step that is not applied yet) → whether to apply it. Every rank calls it with the same result."""


class AccumulatingStep:
    """One optimizer step over micro-batches that arrive in parts.

    Gradients accumulate until `finish` reduces and divides them once. Create it when the step starts: it sets the
    gradients to 0 and the learning rate to that of `state.step`, which the caller increments (several updates of one
    rollout batch share it). All ranks make the same calls.
    """

    def __init__(self, state: TrainState) -> None:
        for chunk in state.chunks:
            chunk.zero_grad_buffer()
        state.optimizer.zero_grad()
        self._state = state
        self._lr = state.scheduler.apply(state.optimizer, state.step)
        self._reports: list[dict[str, torch.Tensor]] = []
        self._checks: list[cross_check.Findings] = []
        self._reducing = False

    def add(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_fn: LossFn,
        token_loss: TokenLossFn | None = None,
        *,
        last: bool,
    ) -> None:
        """Runs forward and backward over this data rank's micro-batches (the same number on every rank).

        With `token_loss` the gradient of the output layer is computed in the forward pass, and `loss_fn` only gives
        metrics. `last`: no part follows, so the reduction may overlap with this backward pass (`parallel.overlap`).
        """

        def finish(index: int, micro_batch: MicroBatch, output: Any) -> tuple[Any, ...]:
            if token_loss is None:
                loss, metrics = loss_fn(output, micro_batch, index)
            else:
                loss, statistics = output
                with torch.no_grad():
                    _, metrics = loss_fn(statistics, micro_batch, index)
            sums = {"loss": loss.detach(), **{name: value.detach() for name, value in metrics.items()}}
            return loss, torch.zeros((), dtype=torch.int, device=loss.device), sums  # `finish` gives Megatron the count

        self._reducing = last
        check_memory(self._state, micro_batches)
        with (
            cross_check.watch(self._state.step + 1) as found,
            nullcontext() if last else _held(self._state.chunks),
            explained(self._state.config, micro_batches),
        ):
            self._reports += _run(self._state.chunks, micro_batches, finish, token_loss)
        if found is not None:
            self._checks.append(found)

    def finish(self, denominator: int, accept: Accept | None = None) -> StepResult:
        """Reduces the gradients over the ranks, divides them by `denominator` and steps the optimizer.

        `denominator` is global: it divides the loss summed over all parts and ranks. It is 0 when no token counted.
        `accept` may refuse the step. Without it, raises TrainingError when the loss or the gradient is not finite. Either
        way nothing but the gradient has changed then.
        """
        state = self._state
        for chunk in state.chunks:
            if chunk.ddp_config.overlap_grad_reduce and not self._reducing:
                chunk.start_grad_sync()
        # Megatron sums the counts of the data ranks and divides the gradient by the sum.
        count = denominator if dist.get_rank(groups.data_context_group()) == 0 else 0
        finalize_model_grads(list(state.chunks), torch.tensor(count, dtype=torch.int, device=platform.device()))
        sums = _reduce(self._reports)
        if self._checks:
            sums["kernels/difference/max"] = exchange.largest(max(found.largest() for found in self._checks))
        loss = sums.pop("loss") / max(1, denominator)
        state.optimizer.prepare_grads()
        result = StepResult(loss, float(state.optimizer.get_grad_norm()), self._lr, sums, applied=False)
        if accept is None:
            _check_finite(state, result)
        elif not accept(result):
            return result
        with explained(state.config, ()):
            apply_gradients(state.optimizer, result.grad_norm)
        return dataclasses.replace(result, applied=True)

    def not_finite(self) -> list[int]:
        """Returns which of this rank's micro-batches, counted over all parts, gave sums that are not finite.

        It is empty on ranks that do not hold the last pipeline stage. The host waits for the GPU.
        """
        return [
            index
            for index, report in enumerate(self._reports)
            if not all(math.isfinite(value) for value in report.values())
        ]


def train_step(
    state: TrainState,
    micro_batches: Sequence[MicroBatch],
    loss_fn: LossFn,
    denominator: int,
    token_loss: TokenLossFn | None = None,
    accept: Accept | None = None,
) -> StepResult:
    """Runs an AccumulatingStep with a single part. Arguments and errors are those of its methods."""
    step = AccumulatingStep(state)
    step.add(micro_batches, loss_fn, token_loss, last=True)
    return step.finish(denominator, accept)


def forward_statistics(state: TrainState, micro_batches: Sequence[MicroBatch]) -> list[torch.Tensor] | None:
    """Returns log-prob, entropy and log-sum-exp of every label, without gradient.

    The result has one [3, T] fp32 tensor per micro-batch. It is None on ranks that do not hold the last pipeline stage.
    """
    with explained(state.config, micro_batches):
        return forward_chunks(state.chunks, micro_batches)


@torch.no_grad()
def forward_metrics(state: TrainState, micro_batches: Sequence[MicroBatch], loss_fn: LossFn) -> dict[str, float]:
    """Returns the loss function's metrics and `loss` over all micro-batches and ranks, summed as in `train_step`.

    Forward only.
    """

    def finish(index: int, micro_batch: MicroBatch, output: torch.Tensor, **_: bool) -> dict[str, torch.Tensor]:
        loss, metrics = loss_fn(output, micro_batch, index)
        return {"loss": loss, **metrics}

    return _reduce(_run(state.chunks, micro_batches, finish))


@torch.no_grad()
def forward_chunks(chunks: Sequence[torch.nn.Module], micro_batches: Sequence[MicroBatch]) -> list[torch.Tensor] | None:
    """Computes `forward_statistics` for model chunks without an optimizer."""

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
    """Runs Megatron's schedule over the micro-batches; returns, on the last stage, the result of `finish` for each.

    Runs forward and backward, or only forward when gradients are disabled.
    """

    def forward_step(source: Iterator[tuple[int, MicroBatch]], chunk: torch.nn.Module) -> tuple[torch.Tensor, Output]:
        heartbeat.moved()
        index, micro_batch = next(source)
        micro_batch = to_device(micro_batch)
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


@contextmanager
def _held(chunks: Sequence[DistributedDataParallel]) -> Iterator[None]:
    """Prevents the gradient reduction inside the block.

    Without it the schedule treats its last micro-batch as the last of the step and starts the reduction.
    """
    functions = [chunk.config.no_sync_func for chunk in chunks]
    with ExitStack() as stack:
        for chunk in chunks:
            chunk.config.no_sync_func = None  # else the schedule would end our `no_sync` before its last micro-batch
            stack.enter_context(chunk.no_sync())
        try:
            yield
        finally:
            for chunk, function in zip(chunks, functions, strict=True):
                chunk.config.no_sync_func = function


def to_device(micro_batch: MicroBatch) -> MicroBatch:
    """Returns the micro-batch with its tensors on this rank's device."""
    device = platform.device()
    moved: dict[str, Any] = {
        field.name: value.to(device, non_blocking=True)
        for field in dataclasses.fields(micro_batch)
        if isinstance(value := getattr(micro_batch, field.name), torch.Tensor)
    }
    return dataclasses.replace(micro_batch, **moved)


def _reduce(reports: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Sums (or maximises) over micro-batches, DP and CP, and broadcasts from the last pipeline stage to every rank."""
    totals: dict[str, float] | None = None
    if groups.is_last_stage():
        names = sorted(reports[0], key=lambda name: (name.endswith(_MAXIMUM), name))
        sums = sum(not name.endswith(_MAXIMUM) for name in names)
        table = torch.stack([torch.stack([report[name].double() for name in names]) for report in reports])
        values = torch.cat([table[:, :sums].sum(0), table[:, sums:].amax(0)])
        for operation, part in ((dist.ReduceOp.SUM, values[:sums]), (dist.ReduceOp.MAX, values[sums:])):
            if len(part):
                dist.all_reduce(part, op=operation, group=groups.data_context_group())
        totals = dict(zip(names, values.tolist(), strict=True))  # the only wait for the GPU
    # The highest rank always holds the last stage: Megatron numbers pipeline stages slowest.
    source = dist.get_world_size() - 1
    return exchange.broadcast_json(totals if dist.get_rank() == source else None, source=source)


def _check_finite(state: TrainState, result: StepResult) -> None:
    if not math.isfinite(result.grad_norm) or not math.isfinite(result.loss):
        raise TrainingError(
            f"step {state.step + 1}: loss {result.loss}, gradient norm {result.grad_norm}: not finite, so the run stops; "
            "lower optimizer.lr or look at this step's data, then resume from the last checkpoint"
        )
