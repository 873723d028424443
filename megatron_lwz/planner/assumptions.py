"""What a plan assumes where nothing of this project was measured on a GPU. Each value names where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Assumption:
    """A value that is not measured, and its source."""

    value: float
    source: str


@dataclass(frozen=True)
class Assumptions:
    """All of them."""

    matrix_share: Assumption = Assumption(
        0.45,
        "share of the dense peak in training: Megatron-LM's README reports 41 % to 48 % end to end on H100; hidden "
        "communication is in it and ours is added once more, so that times are rather too long",
    )
    nvlink_share: Assumption = Assumption(
        0.65, "share of NVLink's rate in collectives: calculon's systems/a100_80g.json"
    )
    network_share: Assumption = Assumption(0.9, "share of the network's rate: calculon's systems/a100_80g.json")
    memory_share: Assumption = Assumption(0.65, "share of the memory's rate in decoding and in Adam: no source")
    decode_launch_seconds: Assumption = Assumption(
        20e-6, "per layer and decode step, for launches and the all-reduce of a few rows: no source"
    )
    disk_bytes_per_second: Assumption = Assumption(2e9, "write, and read, of a shared file system: no source")
    engine_memory_share: Assumption = Assumption(0.9, "share of the card that an engine takes: vLLM's default")
    engine_workspace_bytes: Assumption = Assumption(
        4e9, "activations, CUDA graphs and workspaces of an engine's GPU: no source"
    )
    mean_share: Assumption = Assumption(
        0.5,
        "mean response as a share of rollout.max_new_tokens, evenly spread from 0: no source; --mean-tokens replaces it",
    )
    prompt_tokens: Assumption = Assumption(300, "mean prompt: no source")

    def lines(self) -> list[str]:
        """Returns each as one line."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [f"{name.replace('_', ' ')} {value.value:g}: {value.source}" for name, value in values]


ASSUMED = Assumptions()
