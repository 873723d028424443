"""One process at a time holds a lock; it ends with the process, and no child has it."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lwz.errors import FileSystemError
from megatron_lwz.file_lock import FileLock, LockHeld

HOLDER = """
import os, sys, time
from pathlib import Path
from megatron_lwz.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "writer.lock"


@pytest.fixture
def holder(path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(child, signal.SIGKILL)
    process.wait()


def test_the_second_process_is_told_who_holds_it_and_changes_nothing(path: Path, holder: subprocess.Popen) -> None:
    said = f"process {holder.pid} on {platform.node()}"
    for _ in range(2):
        with pytest.raises(LockHeld) as caught:
            FileLock(path)
        assert caught.value.holder == said and path.read_text() == said + "\n"


def test_a_killed_holder_holds_nothing_though_its_child_lives(path: Path, holder: subprocess.Popen) -> None:
    holder.kill()
    holder.wait()
    lock = FileLock(path)
    assert path.read_text() == f"process {os.getpid()} on {platform.node()}\n"
    lock.release()


def test_the_file_is_empty_between_two_holders(path: Path) -> None:
    for _ in range(2):
        lock = FileLock(path)
        lock.release()
        lock.release()
        assert path.read_bytes() == b""


def test_a_file_system_without_locks_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(FileSystemError) as caught:
        FileLock(path)
    assert f"{path}: this file system cannot lock files (No locks available): use another" in str(caught.value)
