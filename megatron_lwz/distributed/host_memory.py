"""How much memory this machine, or the container, still has."""

from __future__ import annotations

from pathlib import Path

import psutil

from megatron_lwz.distributed import environment

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Files with a limit and what counts against it, of both versions of Linux's control groups."""


def free_memory() -> int:
    """Returns bytes: the least of what the machine has free and what the container may still take."""
    found = [int(psutil.virtual_memory().available)]
    for limit, used in _LIMITS:
        try:
            found.append(int((_CONTROL_GROUPS / limit).read_text()) - int((_CONTROL_GROUPS / used).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return min(found)


def share(size: float) -> float:
    """Returns which part of the free memory it is when every rank of this machine takes `size` bytes."""
    return size * environment.local_world_size() / max(1, free_memory())
