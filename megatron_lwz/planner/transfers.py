"""Weight sync at scale, on paper: bytes, seconds and memory of four ways to send new weights to the engines. Formulas.

The project has the first two (`weight_sync.transport`); the others show what it would gain from them. Not counted, and the
same for all: the HTTP requests that hold the engines, start-up of collectives, and copies within a machine between GPU
and host memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lwz.config import Architecture
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.engines import parameters
from megatron_lwz.planner.hardware import Gpu
from megatron_lwz.planner.timing import Layout

WIDTH, INDEX = 2, 4
"""Bytes of a weight, in bf16, and of the number that says which weight changed."""


@dataclass(frozen=True)
class Route:
    """From which trainer to which engines, over the network between their machines."""

    arch: Architecture
    trainer: Layout
    engines: int
    engine_gpus: int
    """Of each engine."""
    card: Gpu
    bucket: int
    """`weight_sync.bucket_mib` in bytes."""

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return WIDTH * parameters(self.arch)

    @property
    def nvlink(self) -> float:
        """Bytes per second of a GPU within its machine."""
        return self.card.nvlink_gb_per_s * 1e9 * ASSUMED.nvlink_share.value

    @property
    def network(self) -> float:
        """Bytes per second of a GPU's adapter."""
        return self.card.network_gb_per_s * 1e9 * ASSUMED.network_share.value

    @property
    def gathering(self) -> float:
        """Seconds in which rank 0 gets all tensors, one by one: from its tensor group, and from the other stages' ranks."""
        t, p = self.trainer.tensor, self.trainer.pipeline
        between = self.network if self.trainer.ranks > self.card.gpus_per_node else self.nvlink
        return self.weights * ((t - 1) / t / self.nvlink + (p - 1) / p / between)


@dataclass(frozen=True)
class Transfer:
    """One way. Bytes are of one weight sync."""

    name: str
    sent: float
    """Most bytes that one link or the file system carries towards the engines."""
    received: float
    """Bytes that arrive at one engine GPU."""
    before: float
    """Seconds in which engines go on writing."""
    held: float
    """Seconds in which engines hold their streams."""
    trainer_memory: float
    """Bytes on the trainer's fullest GPU, besides its state."""
    engine_memory: float
    """Bytes on an engine's GPU, besides its weights."""

    @property
    def seconds(self) -> float:
        """Both parts."""
        return self.before + self.held


def disk(route: Route) -> Transfer:
    """Rank 0 writes a folder, every engine reads it: all at the assumed rate, so the file system serves them at once."""
    once = route.weights / ASSUMED.disk_bytes_per_second.value
    tensor = _largest(route)
    part = route.weights / route.engine_gpus
    return Transfer("disk", route.weights, part, route.gathering + once, once, tensor, tensor)


def from_rank_0(route: Route) -> Transfer:
    """Rank 0 gathers a bucket and sends it to all GPUs of the engines in a chain, so that its adapter carries it once."""
    held = route.gathering + route.weights / route.network  # a bucket is packed, then sent
    memory = route.bucket + _largest(route)
    return Transfer("NCCL from rank 0", route.weights, route.weights, 0.0, held, memory, memory)


def resharded(route: Route) -> Transfer:
    """Every trainer rank sends, and an engine GPU gets only its own part. Replicas share the work."""
    sent = route.engines * route.weights / route.trainer.ranks
    received = route.weights / route.engine_gpus
    held = max(sent, received) / route.network
    return Transfer("resharded from all ranks", sent, received, 0.0, held, route.bucket, route.bucket)


def deltas(route: Route, changed: float) -> Transfer:
    """The same, of the weights alone whose bf16 value changed, each with its number; or of all, where that is less.

    The trainer keeps the weights that it sent last, split over all its ranks.
    """
    whole = resharded(route)
    share = min(1.0, changed * (WIDTH + INDEX) / WIDTH)
    kept = route.weights / route.trainer.ranks
    return Transfer(
        f"deltas, {changed:.0%} changed",
        whole.sent * share,
        whole.received * share,
        0.0,
        whole.held * share,
        kept + route.bucket,
        route.bucket,
    )


def of_transport(route: Route, transport: str) -> Transfer:
    """Returns the way that `weight_sync.transport` names."""
    return from_rank_0(route) if transport == "nccl" else disk(route)


def _largest(route: Route) -> int:
    """Returns bytes of the largest tensor, the table of the embedding."""
    return WIDTH * route.arch.vocab_size * route.arch.hidden_size
