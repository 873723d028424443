"""The processes of a run: who is who, who is left, and the faults that hit one of them."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress

import psutil

NAMES = {
    "torchrun": ("run", "pt_elastic"),
    "rank 0": ("train_grpo", "train_grpo.0"),
    "rank 1": ("train_grpo.1",),
    "rollout process": ("rollout_host",),
}
"""Role → names in the process table (tests/support/warm.py; torchrun gives itself another one)."""


def members(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The process and all that it has started, torchrun's ranks as well, without those that have ended."""
    try:
        parent = psutil.Process(process.pid)
        return [member for member in (parent, *parent.children(recursive=True)) if alive(member)]
    except psutil.NoSuchProcess:
        return []


def alive(member: psutil.Process) -> bool:
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def with_role(family: list[psutil.Process], role: str) -> psutil.Process | None:
    return next((member for member in family if role_of(member) == role), None)


def role_of(member: psutil.Process) -> str:
    """Its role, else its name; nothing if it has ended."""
    with suppress(psutil.NoSuchProcess):
        name = member.name()
        return next((role for role, names in NAMES.items() if name in names), name)
    return ""


def kill(found: list[psutil.Process]) -> None:
    """SIGKILL, to all at one moment as far as that goes."""
    for member in found:
        with suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)


def freeze(found: psutil.Process, seconds: float) -> None:
    """SIGSTOP, and SIGCONT after so long."""
    with suppress(psutil.NoSuchProcess):
        found.suspend()
        time.sleep(seconds)
        found.resume()


def left_after(family: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after so long."""
    end = time.monotonic() + seconds
    while (left := [member for member in family if alive(member)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left
