"""How much memory this machine, or the container, still has."""

from __future__ import annotations

import contextlib
import ctypes
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
    """Returns bytes: the least of what the machine has free and what the container may still take.

    Files that the system keeps in memory make room, so they count as free.
    """
    found = [int(psutil.virtual_memory().available)]
    for limit, used in _LIMITS:
        try:
            taken = int((_CONTROL_GROUPS / used).read_text())
            found.append(
                int((_CONTROL_GROUPS / limit).read_text()) - taken + _cached_files((_CONTROL_GROUPS / used).parent)
            )
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return min(found)


def _cached_files(group: Path) -> int:
    """Returns the bytes of files among what counts against a control group; 0 where it does not say."""
    try:
        lines = dict(line.split(" ", 1) for line in (group / "memory.stat").read_text().splitlines())
        prefix = "total_" if "total_inactive_file" in lines else ""
        return sum(int(lines[f"{prefix}{kind}_file"]) for kind in ("inactive", "active"))
    except (OSError, ValueError, KeyError):
        return 0


def free_swap() -> int:
    """Returns bytes of the machine's swap that are free."""
    return int(psutil.swap_memory().free)


def give_back() -> None:
    """Returns to the system what the C library keeps of freed memory, so that `free_memory` counts it. Elsewhere nothing."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def share(size: float) -> float:
    """Returns which part of the free memory it is when every rank of this machine takes `size` bytes."""
    return size * environment.local_world_size() / max(1, free_memory())
