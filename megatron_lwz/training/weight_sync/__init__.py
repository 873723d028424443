"""Trainer to engines: three verbs, prepare(version), push(version), verify(version)."""

from megatron_lwz.training.weight_sync.disk import DiskTransport
from megatron_lwz.training.weight_sync.protocol import EngineControl

__all__ = ["DiskTransport", "EngineControl"]
