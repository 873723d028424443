"""New files that hold prompts, replies or a server's output are readable by their owner alone.

A file that exists keeps its mode, so that `chmod` shares it for good.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

MODE = 0o600


def make_private(path: Path, *, replaces: Path | None = None) -> None:
    """Makes an empty file with mode 0600 if `path` does not exist. With `replaces`, with the mode of that file if it exists.

    An error of the file system is left to the code that writes the file next, which names it.
    """
    try:
        mode = stat.S_IMODE(replaces.stat().st_mode) if replaces is not None else MODE
    except OSError:
        mode = MODE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
    except OSError:
        return
    try:
        if mode != MODE:
            os.fchmod(descriptor, mode)
    except OSError:
        pass  # a file system without modes
    finally:
        os.close(descriptor)
