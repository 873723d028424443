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

from megatron_lwz import mounts
from megatron_lwz.errors import FileSystemError
from megatron_lwz.file_lock import FileLock, LockHeld, holder_of
from megatron_lwz.mounts import local_locks

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
        assert caught.value.holder == said == holder_of(path) and path.read_text() == said + "\n"


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
    assert not path.exists()


def test_a_process_does_not_get_its_own_lock_twice(path: Path) -> None:
    lock = FileLock(path)
    for _ in range(2):
        with pytest.raises(LockHeld, match=f"process {os.getpid()} on"):
            FileLock(path)
    assert holder_of(path) == f"process {os.getpid()} on {platform.node()}"
    command = "import sys; from pathlib import Path; from megatron_lwz.file_lock import *; FileLock(Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", command, str(path)], stderr=subprocess.PIPE, text=True, check=False)
    assert f"LockHeld: {path}: process {os.getpid()} on" in other.stderr, "asking again has not ended it"
    lock.release(remove=True)
    assert not path.exists() and holder_of(path) is None and not path.exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lockf, removed = fcntl.lockf, []

    def remove_once(*arguments: object) -> None:  # as by the holder that released it between our open and our lock
        if not removed:
            removed.append(path.unlink())
        lockf(*arguments)

    monkeypatch.setattr(fcntl, "lockf", remove_once)
    lock = FileLock(path)
    assert path.read_text() == f"process {os.getpid()} on {platform.node()}\n"
    lock.release()


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /nfs rw,relatime shared:1 - nfs4 server:/a rw,vers=4.2,local_lock=none,addr=10.0.0.1
31 22 0:41 / /nfs/old rw - nfs server:/b rw,vers=3,nolock,local_lock=all
32 22 0:42 / /half rw - nfs server:/c rw,vers=3,local_lock=flock
33 22 0:43 / /my\\040disk rw - fuse.sshfs user@host:/ rw
34 22 0:44 / /lustre rw - lustre 10.0.0.2@tcp:/l rw,flock
35 22 0:45 / /scratch rw - lustre 10.0.0.2@tcp:/s rw,localflock
36 31 8:2 / /nfs/old/disk rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/home/run", ""),
        ("/nfs/run", ""),
        ("/nfs/old/run", "nfs, nolock"),
        ("/nfs/older/run", ""),
        ("/nfs/old/disk/run", ""),
        ("/half/run", ""),  # only flock is kept to one host
        ("/my disk/run", "fuse.sshfs"),
        ("/lustre/run", ""),
        ("/scratch/run", "lustre, localflock"),
    ],
)
def test_a_mount_that_keeps_locks_to_one_host_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, said: str
) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    assert local_locks(Path(place)) == said


@pytest.mark.parametrize(("kind", "free"), [("ext4", True), ("fuse.sshfs", False)])
def test_a_killed_process_of_another_host_is_in_the_way_only_where_its_lock_could_not_be_seen(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, free: bool
) -> None:
    (tmp_path / "mounts").write_text(f"22 1 8:1 / / rw - {kind} x rw\n")
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mounts")
    path.write_text("process 7 on a-host-that-is-gone\n")
    if free:
        FileLock(path).release()
    else:
        assert holder_of(path) == "process 7 on a-host-that-is-gone"
        with pytest.raises(LockHeld, match=f"keeps locks to one host; if that process has ended, delete {path}"):
            FileLock(path)
        assert path.read_text() == "process 7 on a-host-that-is-gone\n"
        path.write_text(f"process 7 on {platform.node()}\n")  # of this host: the lock would be seen
        FileLock(path).release()


COUNTER = """
import sys
from pathlib import Path
from megatron_lwz.file_lock import FileLock, LockHeld
lock, counter = map(Path, sys.argv[1:])
done = 0
while done < 150:
    try:
        held = FileLock(lock)
    except LockHeld:
        continue
    number = int(counter.read_text())
    counter.write_text(str(number + 1))
    done += 1
    held.release(remove=done % 2 == 0)
"""


def test_two_processes_never_hold_it_at_once_though_the_file_comes_and_goes(path: Path, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNTER, str(path), str(counter)]
    both = [subprocess.Popen(command), subprocess.Popen(command)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert counter.read_text() == "300"
