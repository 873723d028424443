"""Runs a command that dies with its parent: `python -m megatron_lwz.http.orphan PARENT_PID COMMAND …`.

A small program of its own, because code between fork and exec is unsafe in a process with threads. It becomes the
command (exec), so the process id stays. Outside Linux the command outlives a parent that was killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def dying_with_us(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` until this process dies; to be started from its main thread."""
    return [sys.executable, "-m", __name__, str(os.getpid()), *command]


def main(arguments: list[str]) -> None:
    """Asks the kernel for a SIGKILL at the parent's death, then becomes the command."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel knew of our wish
            sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"cannot start {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
