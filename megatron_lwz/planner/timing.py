"""Time of a step by phase: FLOPs, bytes and link speeds, with the shares of `assumptions.py`. Formulas, not measured.

The bytes of collectives are those that the rehearsal counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_lwz.config import Architecture, Config, Stage
from megatron_lwz.config.flops import sequence_flops, training_passes
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.hardware import Gpu
from megatron_lwz.rehearsal.case import Report, TransferRow


@dataclass(frozen=True)
class Work:
    """What a step trains on."""

    sequences: int
    mean: float
    """Mean length in tokens, prompt included."""

    @property
    def tokens(self) -> float:
        """Tokens of all sequences."""
        return self.sequences * self.mean


@dataclass(frozen=True)
class Layout:
    """The layout of a config on a number of ranks."""

    tensor: int
    context: int
    pipeline: int
    virtual: int
    data: int

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.tensor * self.context * self.pipeline * self.data

    def __str__(self) -> str:
        virtual = f" (virtual {self.virtual})" if self.virtual > 1 else ""
        return f"TP{self.tensor} CP{self.context} PP{self.pipeline}{virtual} DP{self.data}"


def layout_of(config: Config, world: int) -> Layout:
    """Returns the layout."""
    p = config.parallel
    return Layout(
        p.tensor, p.context, p.pipeline, p.virtual_pipeline or 1, world // (p.tensor * p.context * p.pipeline)
    )


def packs_per_rank(config: Config, layout: Layout, work: Work) -> int:
    """Returns the micro-batches of a rank in a step, if packs are full."""
    packs = math.ceil(work.tokens / (config.training.tokens_per_micro_batch * layout.data))
    return math.ceil(packs / layout.pipeline) * layout.pipeline if layout.virtual > 1 else max(1, packs)


def recomputed(arch: Architecture, recompute: str, mean: float) -> float:
    """Returns the FLOPs that recomputation adds, in forward passes."""
    if recompute == "none":
        return 0.0
    whole = sequence_flops(arch, int(mean))
    without_head = whole - 2.0 * mean * arch.hidden_size * arch.vocab_size
    attention = 2.0 * mean * arch.num_hidden_layers * arch.num_attention_heads * arch.head_size * mean
    return (without_head if recompute == "full" else attention) / whole


def seconds_of(
    config: Config, layout: Layout, work: Work, card: Gpu, reports: Sequence[Report], stage: Stage = "grpo"
) -> dict[str, float]:
    """Returns phase → seconds of the trainer's part of a step, from the slowest kind of rank."""
    arch, packs = config.architecture(), packs_per_rank(config, layout, work)
    rate = card.bf16_tflops * 1e12 * ASSUMED.matrix_share.value * layout.ranks
    frozen = [arch] if stage == "dpo" else config.log_prob_passes()
    forward, *before = (work.sequences * sequence_flops(a, int(work.mean)) / rate for a in (arch, *frozen))
    bubble = 1.0 + (layout.pipeline - 1) / (packs * layout.virtual)
    passes = training_passes(config) + recomputed(arch, config.training.recompute, work.mean)
    moving = max(_moving(report, "forward+backward", layout, card) / max(1, report.micro_batches) for report in reports)
    found = {
        "log-probs": sum(seconds * bubble + packs * moving / 3.0 for seconds in before),
        "forward and backward": forward * passes * bubble + packs * moving * bubble,
    }
    touched = (
        max(report.state["optimizer"] for report in reports) * 7 / 3
    )  # masters and moments read and written, + gradient
    adam = touched / (card.memory_gb_per_s * 1e9 * ASSUMED.memory_share.value)
    exchanged = max(_moving(report, "step", layout, card) for report in reports)
    found["optimizer"] = config.training.updates_per_batch * (adam + exchanged)
    return {name: value for name, value in found.items() if value}


def _moving(report: Report, phase: str, layout: Layout, card: Gpu) -> float:
    """Returns the seconds of the collectives of a phase, one after the other, as if none was hidden."""
    return sum(_wire_bytes(row) / _speed(row, layout, card) for row in report.transfers if row.phase == phase)


def _wire_bytes(row: TransferRow) -> float:
    """Returns what a rank sends: of the whole tensor a part (n - 1) / n, of an all-reduce twice that."""
    if row.ranks < 2 or row.operation == "receive":
        return 0.0
    if row.operation in ("send", "broadcast"):
        return float(row.bytes)
    return row.bytes * (row.ranks - 1) / row.ranks * (2.0 if row.operation == "all-reduce" else 1.0)


def _speed(row: TransferRow, layout: Layout, card: Gpu) -> float:
    """Returns bytes per second of a group's links: NVLink where all its ranks are in one machine."""
    inner = {"tensor": 1, "context": layout.tensor, "data": layout.tensor}.get(
        row.group, layout.ranks // layout.pipeline
    )
    span = inner * row.ranks
    if span <= card.gpus_per_node:
        return card.nvlink_gb_per_s * 1e9 * ASSUMED.nvlink_share.value
    return card.network_gb_per_s * 1e9 * ASSUMED.network_share.value
