"""Locks of the system: a file that one process at a time may hold, until it releases it or ends in any way."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

from megatron_lwz.errors import FileSystemError, LwzError
from megatron_lwz.mounts import local_locks

_HELD = (errno.EACCES, errno.EAGAIN)
_ours: WeakValueDictionary[tuple[int, int, int], IO[str]] = WeakValueDictionary()
"""(process id, device, inode) → the lock files that are open here. The system grants a process its own locks again."""


class LockHeld(LwzError):
    """Another process holds the lock, or may hold it. `holder` names it: `process 4711 on node07`."""

    def __init__(self, path: Path, holder: str, advice: str = "wait for it, or end it") -> None:
        super().__init__(f"{path}: {holder} holds this lock: {advice}")
        self.holder, self.advice = holder, advice


class FileLock:
    """An exclusive lock on the file `path`, which is created, with the holder's name in it.

    It is a POSIX record lock: it ends with the process, even with SIGKILL, and a child process never has it. On a
    network file system it also holds against other hosts. Where the mount keeps locks to one host (mounts.py), a name
    of another host in the file counts as held, because nobody can know. Only this class may open the file: closing any
    descriptor of it would release the lock. Raises LockHeld, and FileSystemError if the file system cannot lock.

    `created`: the file was not there before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        while True:
            self.created = not path.exists()
            try:
                self._file = _open_locked(path, "a+")
            except FileSystemError:
                if self.created:
                    path.unlink(missing_ok=True)
                raise
            if _same_file(self._file, path):  # else its last holder has just removed it
                break
            self._close()
        self._write(_name() + "\n")

    def release(self, *, remove: bool = False) -> None:
        """Empties or removes the file, and releases the lock."""
        if self._file.closed:
            return
        if remove:
            self._path.unlink(missing_ok=True)  # while it is locked: whoever opened it meanwhile opens it anew
        else:
            self._write("")
        self._close()

    def _write(self, text: str) -> None:
        self._file.truncate(0)
        self._file.write(text)
        self._file.flush()

    def _close(self) -> None:
        _close(self._file)


def lock_of(path: Path) -> Path:
    """Returns the lock file of a file that one process at a time may write."""
    return path.with_name(path.name + ".lock")


def holder_of(path: Path) -> str | None:
    """Returns the name of the process that holds the lock on `path`, None if nobody does. Changes and creates nothing."""
    try:
        _close(_open_locked(path, "r+"))
    except FileNotFoundError:
        return None
    except LockHeld as held:
        return held.holder
    return None


def _open_locked(path: Path, mode: str) -> IO[str]:
    if _at(path) in _ours:  # a second descriptor, once closed, would end the lock
        raise LockHeld(path, _name())
    file = path.open(mode, encoding="utf-8", errors="replace")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(path) if error.errno in _HELD else ""
        file.close()
        if holder:
            raise LockHeld(path, holder) from error
        advice = "use another file system, or mount this one with locks (Lustre: -o flock)"
        raise FileSystemError(f"{path}: this file system cannot lock files ({error.strerror}): {advice}") from error
    _ours[_identity(os.fstat(file.fileno()))] = file
    try:
        _refuse_another_host(file, path)
    except BaseException:
        _close(file)
        raise
    return file


def _refuse_another_host(file: IO[str], path: Path) -> None:
    """Where the mount does not pass locks on, what stands in the file decides. It is read through the lock's own file."""
    if kind := local_locks(path):
        file.seek(0)
        holder = file.read().strip()
        if holder and not holder.endswith(f" on {platform.node()}"):
            advice = f"this mount ({kind}) keeps locks to one host; if that process has ended, delete {path}"
            raise LockHeld(path, holder, advice)


def _close(file: IO[str]) -> None:
    _ours.pop(_identity(os.fstat(file.fileno())), None)
    file.close()


def _same_file(file: IO[str], path: Path) -> bool:
    return _identity(os.fstat(file.fileno())) == _at(path)


def _at(path: Path) -> tuple[int, int, int] | None:
    """Returns the identity of the file that is at `path` now. Its holder may remove it at any moment."""
    try:
        return _identity(path.stat())
    except FileNotFoundError:
        return None


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), found.st_dev, found.st_ino


def _name() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _holder(path: Path) -> str:
    """Returns the name in the file. A holder that has just locked it may not have written it yet."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except FileNotFoundError:  # it has just released it
        return "another process"
