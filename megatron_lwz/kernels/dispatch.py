"""Which implementation of our ops runs, and how much workspace it may take. Chosen once per run."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from megatron_lwz.errors import ConfigError

logger = logging.getLogger(__name__)

BACKENDS = ("reference", "chunked")
"""Implementations from simplest to fastest; `auto` takes the last one that can run here. Both run on any device."""


@dataclass(frozen=True)
class Settings:
    """The resolved choice. `workspace_bytes` bounds the logits an op holds at a time (one row at least)."""

    backend: str = BACKENDS[-1]
    workspace_bytes: int = 256 * 2**20


_settings = Settings()


def select(backend: str) -> str:
    """The implementation `backend` stands for ("auto" or a name). Raises ConfigError for one that cannot run."""
    if backend == "auto":
        return BACKENDS[-1]
    if backend not in BACKENDS:
        raise ConfigError("kernels.backend", backend, f"cannot run here: choose auto, {', '.join(BACKENDS)}")
    return backend


def set_backend(backend: str, *, workspace_mib: int = 256) -> str:
    """Resolves `kernels.backend` for the rest of the process, logs the choice and returns it. Raises ConfigError."""
    global _settings
    _settings = Settings(select(backend), workspace_mib * 2**20)
    logger.info("kernels: %s (asked: %s), workspace %d MiB", _settings.backend, backend, workspace_mib)
    return _settings.backend


def settings() -> Settings:
    """The choice in force; `chunked` with 256 MiB until `set_backend` is called."""
    return _settings
