"""Whether a step fits in the memory of machines without a GPU, before Linux ends a rank that touches more.

A step is refused for what it surely needs: the tensors that autograd holds at one moment. It is warned of, and advised
against, for what steps of this size took when they were measured (docs/planning.md).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment, exchange, groups, host_memory, platform
from megatron_lwz.errors import OutOfMemory, asked_for, lacks_memory
from megatron_lwz.kernels.settings import settings
from megatron_lwz.training.layer_bytes import LayerBytes, layer_bytes
from megatron_lwz.training.state import TrainState
from megatron_lwz.types import MicroBatch
from megatron_lwz.units import GIB

_KEPT, _PASSING, _WORKSPACES = 1.1, 4.0, 3
"""Measured peaks over what is surely needed: fragments of the heap, gradients inside a layer, tiles of logits."""
_GRAIN = 64
"""Advised sizes of a micro-batch are multiples of this many tokens."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Need:
    """Bytes that one of this rank's micro-batches needs: `surely` with `extra` for what may come on top."""

    surely: float
    extra: float


def check_memory(state: TrainState, micro_batches: Sequence[MicroBatch]) -> None:
    """Raises OutOfMemory, on all ranks, where these micro-batches cannot fit in a machine's memory; warns once where they may not.

    Looks again when a micro-batch is larger than all before it. Collective; does nothing where there is a GPU, whose allocator raises.
    """
    if platform.has_gpu():
        return
    room = state.room
    largest = int(exchange.largest(max(batch.tokens.numel() for batch in micro_batches)))
    if largest <= room.tokens:
        return
    room.layer = room.layer or layer_bytes(state.chunks[0])
    host_memory.give_back()
    needs = [_need(state, room.layer, *tokens) for tokens in _in_flight(micro_batches, state.config)]
    surely, likely = (_of_machine(row) for row in ([n.surely for n in needs], [n.surely + n.extra for n in needs]))
    free = host_memory.free_memory()
    worst = exchange.largest(surely / max(1, free + host_memory.free_swap()))
    full = surely / max(1, free + host_memory.free_swap()) == worst > 1.0
    said = exchange.first_said(_line(state, surely, free, largest) if full else None)
    if said is not None:
        raise OutOfMemory(said)
    room.tokens = largest
    if exchange.largest(likely / max(1, free)) > 1.0 and not room.warned:
        room.warned = True
        if groups.is_rank_zero():
            log.warning(
                "step %d: micro-batches of %s tokens may need %.1f GiB of a machine's memory, %.1f GiB are free on this one: "
                "if the system kills a rank, lower training.tokens_per_micro_batch, or set training.recompute",
                state.step + 1, f"{largest * state.config.parallel.context:,}", likely / GIB, free / GIB,
            )  # fmt: skip


@contextmanager
def explained(config: Config, micro_batches: Sequence[MicroBatch]) -> Iterator[None]:
    """Turns a lack of memory inside the block, of a GPU or a CPU, into OutOfMemory with advice in one line.

    Without micro-batches the block is the optimizer's step.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not lacks_memory(error):
            raise
        asked = asked_for(error)
        if not micro_batches:
            advice = "share its state among more ranks, or train adapters (lora.rank)"
            raise OutOfMemory(f"out of memory in the optimizer's step{asked}: {advice}") from error
        largest = max(batch.tokens.numel() for batch in micro_batches) * config.parallel.context
        advice = _without_figures(config, max(batch.max_seqlen for batch in micro_batches), largest)
        raise OutOfMemory(
            f"out of memory{asked} in a step with micro-batches of up to {largest:,} tokens: {advice}"
        ) from error


def _in_flight(micro_batches: Sequence[MicroBatch], config: Config) -> list[tuple[int, int]]:
    """Returns this rank's tokens of every micro-batch, and of all that wait for their backward pass together with it."""
    ahead = config.parallel.pipeline - groups.pipeline_rank()
    sizes = [batch.tokens.numel() for batch in micro_batches]
    return [(size, sum(sizes[first : first + ahead])) for first, size in enumerate(sizes)]


def _need(state: TrainState, layer: LayerBytes, tokens: int, waiting: int) -> _Need:
    """Of `tokens` tokens of this rank's share, when those and others, `waiting` in all, have run forward."""
    layers = sum(len(policy.decoder.layers) for policy in state.policies)
    kept, passing = layers * layer.kept * waiting, layer.passing * tokens
    surely = kept + passing
    return _Need(surely, _KEPT * kept + _PASSING * passing + _WORKSPACES * _logits(state, tokens) - surely)


def _logits(state: TrainState, tokens: int) -> float:
    """Returns the bytes of a tile of logits. The output layer's gradient is added to its buffer at once."""
    last = state.policies[-1]
    if not last.post_process or state.config.model.head == "scalar":
        return 0.0
    return float(min(settings().workspace_bytes, 4 * tokens * last.output_weight().shape[0]))


def _of_machine(needs: Sequence[float]) -> float:
    """Returns the most that the ranks of this machine need at once, at the same micro-batch. Collective."""
    table = torch.zeros(dist.get_world_size(), len(needs), dtype=torch.float64)
    table[dist.get_rank()] = torch.tensor(needs, dtype=torch.float64)
    dist.all_reduce(table)
    first = dist.get_rank() - environment.local_rank()
    return float(table[first : first + environment.local_world_size()].sum(0).max())


def _line(state: TrainState, needed: float, free: int, largest: int) -> str:
    config, ranks = state.config, environment.local_world_size()
    tokens = largest * config.parallel.context
    who = "its rank needs" if ranks == 1 else f"its {ranks} ranks need"
    return (
        f"step {state.step + 1}: micro-batches of {tokens:,} tokens do not fit in the memory of the machine: {who} at least "
        f"{needed / GIB:.1f} GiB for them, and {free / GIB:.1f} GiB are free: {_advice(state, free, largest)}"
    )


def _advice(state: TrainState, free: int, largest: int) -> str:
    """Returns what would fit, by the measured peaks, first without and then with recomputation of everything."""
    config, layer = state.config, state.room.layer
    assert layer is not None
    whole = layer.kept + layer.passing
    recomputing = LayerBytes(layer.inputs, whole - layer.inputs, layer.inputs)
    for found, also in ((layer, ""), (recomputing, "training.recompute=full and ")):
        if also and config.training.recompute == "full":
            break
        fitting = _largest_fitting(state, found, free)
        if fitting >= max(state.room.least_tokens, 1):
            tokens = min(fitting, config.training.tokens_per_micro_batch)
            return f"set {also}training.tokens_per_micro_batch={tokens}"
    if config.training.recompute != "full":
        return (
            "set training.recompute=full, and shorten the longest sequence or train on more machines (parallel.context)"
        )
    return "shorten the longest sequence, train adapters (lora.rank), or train on more machines (parallel.context)"


def _largest_fitting(state: TrainState, layer: LayerBytes, free: float) -> int:
    """Returns how many tokens a micro-batch may have, of a context-parallel group, where all local ranks have as many."""
    ahead, context = state.config.parallel.pipeline - groups.pipeline_rank(), state.config.parallel.context

    def takes(tokens: int) -> float:
        share = math.ceil(tokens / context)
        need = _need(state, layer, share, ahead * share)
        return (need.surely + need.extra) * environment.local_world_size()

    low, high = 0, max(1, state.config.training.tokens_per_micro_batch // _GRAIN)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if takes(middle * _GRAIN) <= free else (low, middle - 1)
    return low * _GRAIN


def _without_figures(config: Config, longest: int, largest: int) -> str:
    """Returns the advice where the free memory is not known."""
    found = []
    if largest > longest:
        found.append(f"lower training.tokens_per_micro_batch ({config.training.tokens_per_micro_batch} now)")
    if config.training.recompute != "full":
        found.append("set training.recompute=full")
    found.append("raise parallel.context or parallel.tensor")
    return ", or ".join(found)
