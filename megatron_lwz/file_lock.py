"""Locks of the system: a file that one process at a time may hold, until it releases it or ends in any way."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from pathlib import Path

from megatron_lwz.errors import FileSystemError, LwzError

_HELD = (errno.EACCES, errno.EAGAIN)


class LockHeld(LwzError):
    """Another process holds the lock. `holder` names it: `process 4711 on node07`."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path}: {holder} holds this lock: wait for it, or end it")
        self.holder = holder


class FileLock:
    """An exclusive lock on the file `path`, which is created, with the holder's name in it.

    It is a POSIX record lock: it ends with the process, even with SIGKILL, and a child process never has it. On a
    network file system it also holds against other hosts. Only this class may open the file: closing any descriptor of
    it would release the lock. Raises LockHeld, and FileSystemError if the file system cannot lock.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(path) if error.errno in _HELD else ""
            self._file.close()
            if holder:
                raise LockHeld(path, holder) from error
            advice = "use another file system, or mount this one with locks (Lustre: -o flock)"
            raise FileSystemError(f"{path}: this file system cannot lock files ({error.strerror}): {advice}") from error
        self._write(f"process {os.getpid()} on {platform.node()}\n")

    def release(self) -> None:
        """Empties the file and releases the lock."""
        if not self._file.closed:
            self._write("")
            self._file.close()

    def _write(self, text: str) -> None:
        self._file.truncate(0)
        self._file.write(text)
        self._file.flush()


def _holder(path: Path) -> str:
    """Returns the name in the file. A holder that has just locked it may not have written it yet."""
    return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
