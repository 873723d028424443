"""How the policy's weights reach the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Section


class WeightSyncSection(Section):
    """Trainer to engines."""

    transport: Literal["disk", "nccl"] = Field(
        "disk",
        description="disk: safetensors under the run folder, which the engines must see; nccl: GPU to GPU, engine vllm only",
    )
    verify_interval: int = Field(
        20, ge=0, description="disk: compare checksums after the first push and every N; 0 = first only"
    )
    bucket_mib: int = Field(
        1024,
        gt=0,
        description="nccl: MiB sent at a time; rank 0 holds at most this much and one tensor; vLLM's default",
    )
    buffers: int = Field(2, gt=0, description="nccl: buckets that an engine receives ahead of loading; vLLM's default")
    library: str = Field(
        "libnccl.so.2", description="nccl: shared library; its version must be the engines' (torch's own by default)"
    )
    timeout: float = Field(
        300.0, gt=0, description="nccl: seconds for engines to join, and for one transfer, before the run ends"
    )
