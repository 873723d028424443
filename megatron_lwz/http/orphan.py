"""Runs a command that dies with its parent: `python -m megatron_lwz.http.orphan PARENT_PID COMMAND …`.

This is a separate small program, because code between fork and exec is unsafe in a process with threads. It replaces
itself by the command (exec), so the process id stays the same. Outside Linux, the command outlives a parent that was
killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def dying_with_us(command: Sequence[str]) -> list[str]:
    """Returns a command line that runs `command` until this process dies. Start it from the main thread."""
    return [sys.executable, "-m", __name__, str(os.getpid()), *command]


def main(arguments: list[str]) -> None:
    """Requests a SIGKILL from the kernel at the parent's death, then executes the command."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before prctl took effect
            sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot start {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
