"""`--dry-run device`: the largest step on the real ranks, and the memory that it takes there, beside the plan's.

No engine is started, no data or weights are read, no file is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from megatron_lwz.config import Config, Stage
from megatron_lwz.distributed import environment, exchange, launch, platform
from megatron_lwz.errors import OutOfMemory, lacks_memory
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.planner.dry_run import INSTANTS, check, export_of, instants, longest_sequence, packs_at_once
from megatron_lwz.planner.live_bytes import LiveBytes
from megatron_lwz.rehearsal.batches import Size
from megatron_lwz.rehearsal.steps import build_policies, build_state, for_stage, run_buckets, run_export, run_step
from megatron_lwz.training.state_bytes import state_bytes
from megatron_lwz.types import MicroBatch

_SPREAD = 0.02
"""Standard deviation of the weights: finite values are all that a dummy step needs."""


@dataclass(frozen=True)
class Measured:
    """What one rank took, in bytes. Plain data, which travels as JSON."""

    rank: int
    stage: int
    """Its pipeline stage, from 0."""
    state: Mapping[str, int]
    """Parameters, gradients, optimizer."""
    instants: Mapping[str, int]
    """Instant → the most that was allocated; on a CPU, that tensors held."""
    reserved: int | None
    """The most that torch's allocator held; None on a CPU."""
    capacity: int | None
    """Of the GPU."""

    @property
    def peak(self) -> int:
        """The largest of the instants."""
        return max(self.instants.values())


class Meter:
    """A Watch that measures the memory of this rank by phase, inside a `with` block."""

    on_gpu = True

    def __init__(self) -> None:
        self.phase = "start"
        """The phase that began last."""
        self.peaks: dict[str, int] = {}
        """Phase → the most that was allocated during it; complete at the end of the block."""
        self.reserved: int | None = 0
        """The most that torch's allocator held; None on a CPU."""

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        """Nothing is left to do."""

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Notes the peak of the block."""
        self.phase = phase
        torch.cuda.reset_peak_memory_stats()
        yield
        torch.cuda.synchronize()
        self.reserved = max(self.reserved or 0, torch.cuda.max_memory_reserved())
        self.peaks[phase] = max(self.peaks.get(phase, 0), torch.cuda.max_memory_allocated())

    def begins(self, micro_batch: MicroBatch) -> None:
        """Needs nothing."""


class HostMeter(Meter):
    """The same on a CPU, where tensors are counted. Before the block nothing counts."""

    on_gpu = False

    def __init__(self) -> None:
        super().__init__()
        self.reserved = None
        self._live = LiveBytes()

    def __enter__(self) -> HostMeter:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._live.__exit__(kind, value, trace)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Notes the peak of the block."""
        self.phase = phase
        self._live.begin()
        yield
        self.peaks[phase] = max(self.peaks.get(phase, 0), self._live.peak)


def measure(config: Config, stage: Stage) -> list[Measured]:
    """Runs the step on this launch's ranks. Returns what each of them took, on every rank. Collective.

    Raises ConfigError for what the stage or the layout refuses, OutOfMemory on a rank that has not the memory.
    """
    config = for_stage(config, stage)
    check(config, stage, environment.world_size())
    launch.initialize(config)
    meter = Meter() if platform.has_gpu() else HostMeter()
    try:
        with meter:
            held, notes = _run(config, stage, meter)
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if (line := _out_of_memory(error, meter)) is None:
            raise
        raise OutOfMemory(line) from error
    world = dist.get_world_size()
    mine = Measured(
        rank=dist.get_rank(),
        stage=dist.get_rank() // (world // config.parallel.pipeline),
        state=held,
        instants=instants(meter.peaks, notes),
        reserved=meter.reserved,
        capacity=torch.cuda.mem_get_info()[1] if meter.on_gpu else None,
    )
    found = [exchange.broadcast_json(asdict(mine), source=rank) for rank in range(world)]
    return [Measured(**row) for row in found]


def _run(config: Config, stage: Stage, meter: Meter) -> tuple[dict[str, int], dict[str, Any]]:
    """Returns the bytes of the state, and the notes of the step."""
    policies = build_policies(config, meter)
    with meter.during("parameters"):
        _fill(policies)
    state = build_state(config, policies, meter)
    held = asdict(state_bytes(state))
    size = Size(longest_sequence(config, stage), packs_at_once(config), fill=True)
    _, notes = run_step(stage, state, size, meter)
    if export_of(config, stage) == "buckets" and meter.on_gpu:
        run_buckets(state, meter, platform.device())
    else:
        run_export(state, meter)
    return held, notes


@torch.no_grad()
def _fill(policies: list[PolicyModel]) -> None:
    for policy in policies:
        for parameter in policy.parameters():
            parameter.normal_(std=_SPREAD)


def _out_of_memory(error: BaseException, meter: Meter) -> str | None:
    """Returns the line about a lack of memory; None for another error."""
    if not lacks_memory(error):
        return None
    advice = "change parallel, training.recompute or training.tokens_per_micro_batch, or train on more GPUs"
    instant = next((name for name, phases in INSTANTS.items() if meter.phase in phases), meter.phase)
    return (
        f"--dry-run device: out of memory at the instant '{instant}': {advice} ({str(error).partition('. ')[0]:.200})"
    )
