"""Transfer of the policy's weights to the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_lwz.config.base import Section, UserPath


class WeightSyncSection(Section):
    """Weight sync from the trainer to the engines."""

    transport: Literal["disk", "nccl"] = Field(
        "disk",
        description="disk: safetensors files under the run folder, which the engines must be able to read; nccl: GPU to GPU, engine vllm only",
    )
    verify_interval: int = Field(
        20,
        ge=0,
        description="disk: compare checksums after the first weight sync and then every this many; 0 = after the first only",
    )
    bucket_mib: int = Field(
        1024,
        gt=0,
        description="nccl: size of a bucket, in MiB; rank 0 holds at most this much plus one tensor; vLLM's default",
    )
    buffers: int = Field(
        2, gt=0, description="nccl: buckets that an engine receives before it loads them; vLLM's default"
    )
    library: UserPath = Field(
        "libnccl.so.2",
        description="nccl: shared library of NCCL; its version must match the engines' (default: torch's own)",
    )
    timeout: float = Field(
        300.0,
        gt=0,
        description="nccl: seconds that the engines have to join, and that one transfer may take, before the run ends",
    )
