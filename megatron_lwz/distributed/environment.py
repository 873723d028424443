"""The only reader of the process environment below `cli`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME")
_LAUNCHER_PREFIXES = ("LOCAL_", "MASTER_", "TORCHELASTIC_", "TORCH_NCCL_ASYNC")


def get(name: str, default: str | None = None) -> str | None:
    """The variable's value, or `default`."""
    return os.environ.get(name, default)


def rank() -> int:
    """This process's rank as torchrun set it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank on its machine; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def under_torchrun() -> bool:
    """Whether a launcher has set the variables of the rendezvous."""
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


@contextmanager
def lent(name: str, value: str) -> Iterator[None]:
    """Within the block the variable has this value, for this process and its children; then what it had before."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for a subprocess that must not think itself a rank: torchrun's variables left out, `extra` put in."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHER_NAMES and not name.startswith(_LAUNCHER_PREFIXES)
    }
    return kept | extra
