"""The settings of our ops in this process: which implementation runs, and how much memory it may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from megatron_lwz.units import MIB


@dataclass(frozen=True)
class Settings:
    """Settings of the ops. Set once per run by `dispatch.set_backend`."""

    backend: str = "torch"
    workspace_bytes: int = 256 * MIB
    """Maximum memory of the logits that an op holds at a time (one row at least)."""
    cache_bytes: int = 256 * MIB
    """Maximum memory of the logits kept from a forward pass to its backward pass."""
    cross_check_interval: int = 0
    """Steps between cross-checks of a few rows with the reference; 0: never."""


_settings = Settings()


def settings() -> Settings:
    """Returns the current settings."""
    return _settings


def put(chosen: Settings) -> None:
    """Replaces the settings for the rest of the process."""
    global _settings
    _settings = chosen


@contextmanager
def using(**changes: Any) -> Iterator[None]:
    """Uses other settings within a block, for comparisons, benchmarks and tests."""
    before = settings()
    put(replace(before, **changes))
    try:
        yield
    finally:
        put(before)
