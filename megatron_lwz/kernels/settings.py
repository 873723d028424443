"""The choices in force for this process: which implementation of our ops runs, and how much memory it may take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """Set once per run by `dispatch.set_backend`."""

    backend: str = "torch"
    workspace_bytes: int = 256 * MIB
    """Bounds the logits an op holds at a time (one row at least)."""
    cache_bytes: int = 256 * MIB
    """Bounds the logits kept from a forward to its backward pass."""
    cross_check_interval: int = 0
    """Every how many steps a few rows are computed again by the reference; 0: never."""


_settings = Settings()


def settings() -> Settings:
    """The choices in force."""
    return _settings


def put(chosen: Settings) -> None:
    """Replaces them for the rest of the process."""
    global _settings
    _settings = chosen


@contextmanager
def using(**changes: Any) -> Iterator[None]:
    """Other choices within a block: for comparisons, benchmarks and tests."""
    before = settings()
    put(replace(before, **changes))
    try:
        yield
    finally:
        put(before)
