"""Small models over every kind of layout: the cases of `tests/rehearsal` and of the page in docs/benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_lwz.rehearsal.case import Case

TOKENS = 512
"""Tokens of a micro-batch: two sequences."""
_ARCHITECTURE = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1000,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a small model is split, and the ranks that differ from each other in it."""

    name: str
    world: int = 1
    parallel: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    ranks: tuple[int, ...] = (0,)
    layers: int = 2

    def case(self, stage: str, rank: int, label: str = "", **sections: Mapping[str, Any]) -> Case:
        """Returns the case of one rank. `sections` are further sections of the config; `label` names what they change."""
        config: dict[str, Mapping[str, Any]] = {
            "model": {"architecture": {**_ARCHITECTURE, "num_hidden_layers": self.layers}},
            "parallel": dict(self.parallel),
            "training": {"tokens_per_micro_batch": TOKENS, **self.training},
        }
        for name, section in sections.items():
            config[name] = {**config.get(name, {}), **section}
        parts = [stage, self.name, *([f"rank {rank}"] if self.world > 1 else []), *([label] if label else [])]
        return Case(" ".join(parts), config, stage, self.world, rank)


LAYOUTS = (
    Layout("one GPU"),
    Layout("selective", training={"recompute": "selective"}),
    Layout("TP2", 2, {"tensor": 2}),
    Layout("PP2", 2, {"pipeline": 2}, ranks=(0, 1)),
    Layout("PP2 VPP2", 2, {"pipeline": 2, "virtual_pipeline": 2}, ranks=(0, 1), layers=4),
    Layout("CP2", 2, {"context": 2}, ranks=(1,)),
    Layout("DP2 overlap", 2, {"overlap": True}, ranks=(1,)),
    Layout(
        "TP2 CP2 PP2 DP2 overlap full",
        16,
        {"tensor": 2, "context": 2, "pipeline": 2, "overlap": True},
        {"recompute": "full"},
        ranks=(0, 15),
    ),
)
"""Overlap is of the gradient reduction with the backward pass; selective and full are the recomputation."""

BY_NAME = {layout.name: layout for layout in LAYOUTS}

DECODINGS = (
    BY_NAME["one GPU"].case("decode", 0),
    BY_NAME["TP2"].case("decode", 1, "whole sequences", parallel={"sequence": False}),
)
"""The layouts of an embedded engine: one rank, or tensor parallelism without sequence parallelism."""
