"""The only reader of the process environment below `cli`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME")
_LAUNCHER_PREFIXES = ("LOCAL_", "MASTER_", "TORCHELASTIC_", "TORCH_NCCL_ASYNC")


def get(name: str, default: str | None = None) -> str | None:
    """Returns the variable's value, or `default` when it is not set."""
    return os.environ.get(name, default)


def set_default(name: str, value: str) -> bool:
    """Sets the variable, for this process and its children, unless it is set. Returns whether it did."""
    missing = name not in os.environ
    os.environ.setdefault(name, value)
    return missing


def rank() -> int:
    """Returns this process's rank as torchrun set it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Returns the number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Returns this process's rank on its machine; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Returns the number of ranks on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def take_place(rank: int, world_size: int) -> None:
    """Sets this process's place as torchrun would, for good; for a rehearsal, whose other ranks do not exist."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0")


def under_torchrun() -> bool:
    """Whether a launcher has set the variables of the rendezvous."""
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


def machines() -> int:
    """Returns the number of torchrun agents, one per machine; 1 without torchrun."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def restarts_left() -> int:
    """Returns how many times torchrun would still start the ranks again after a failure; 0 without torchrun."""
    most, done = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("MAX_RESTARTS", "RESTART_COUNT"))
    return max(0, most - done)


def restart_on_old_store() -> int | None:
    """Returns which restart of torchrun this is, from 1, if its ranks meet on the store of the ranks that ended.

    None at the first start, and with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which gives every start a store of its own.
    """
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return restart if restart and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else None


@contextmanager
def lent(name: str, value: str) -> Iterator[None]:
    """Sets the variable inside the block, for this process and its children; restores the old value afterwards."""
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
    """Returns the environment for a subprocess that is not a rank: without torchrun's variables, with `extra` added."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHER_NAMES and not name.startswith(_LAUNCHER_PREFIXES)
    }
    return kept | extra
