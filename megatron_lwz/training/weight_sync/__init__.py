"""Weight sync from trainer to engines: prepare(version), push(version), verify(version), over one of two transports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_lwz.config import Config
from megatron_lwz.orchestrator.protocol import EngineControl
from megatron_lwz.training.weight_sync.disk import DiskTransport
from megatron_lwz.training.weight_sync.nccl import NcclTransport, nccl_joining
from megatron_lwz.training.weight_sync.protocol import Transport

__all__ = ["DiskTransport", "NcclTransport", "Transport", "make_transport"]


def make_transport(
    engines: EngineControl | None, config: Config, *, root: Path, chunks: Sequence[torch.nn.Module]
) -> Transport:
    """Returns the transport that `weight_sync.transport` names. Raises LwzError.

    `engines` is given on rank 0 only. Exported folders lie under `root`.
    """
    section = config.weight_sync
    disk = DiskTransport(engines, root, chunks=chunks, config_files_from=config.tokenizer_dir())
    if section.transport == "disk":
        return disk
    return NcclTransport(engines, disk, chunks=chunks, section=section, joining=nccl_joining(section))
