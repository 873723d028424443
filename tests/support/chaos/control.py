"""The switchboard of a campaign: one shared file through which `faults.c` and the engines are told what to do, and when."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

SOURCE = Path(__file__).with_name("faults.c")
FULL, READ_ONLY = errno.ENOSPC, errno.EROFS
SERVING, DROPPING, STALLING, SILENT, HOLDING = range(5)
"""What engines do: serve; cut connections; answer nothing for a while; take no connection; answer all but write no token."""


FAILING, HANGING = 1, 2
"""What the reward model's server does in place of SERVING: answer 500; answer nothing."""


class _State(ctypes.Structure):
    """`struct control` of faults.c."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("calls", "stop_at", "refuse_at")),
        ("clock", ctypes.c_int64),
        *((name, ctypes.c_uint32) for name in ("stopped", "released", "refuse", "refused", "cut", "engine", "judge")),
        ("folder", ctypes.c_char * 256),
        ("match", ctypes.c_char * 64),
        ("where", ctypes.c_char * 512),
    ]


def library() -> Path:
    """Returns `faults.c` as a shared library, built once per version of its text."""
    name = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    built = ROOT / "build" / "chaos" / f"faults-{name}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        temporary = built.with_suffix(f".{os.getpid()}")
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", str(temporary), str(SOURCE), "-ldl"], check=True
        )
        temporary.replace(built)
    return built


def preloaded(script: str) -> None:
    """Begins `python script` anew, with the library in this process and all that it starts, unless that is so."""
    wanted = str(library())
    if os.environ.get("LD_PRELOAD") != wanted:
        os.execve(sys.executable, [sys.executable, script, *sys.argv[1:]], dict(os.environ) | {"LD_PRELOAD": wanted})


class Control:
    """The shared state. `path` is what the processes have in LWZ_CHAOS."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(ctypes.sizeof(_State)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_State))
        self._state = _State.from_buffer(self._map)

    def watch(self, folder: Path, match: str = "") -> None:
        """Counts from 0 the calls that change files under `folder`, with `match` in their path."""
        state = self._state
        self.calm()
        state.calls, state.folder, state.match = 0, str(folder.resolve()).encode(), match.encode()

    def calm(self) -> None:
        """No fault from now on; a waiting call goes on."""
        state = self._state
        state.stop_at = state.refuse_at = state.refuse = state.refused = state.stopped = state.cut = state.clock = 0
        state.engine = state.judge = SERVING
        state.where = b""
        self.release()

    def stop_at(self, call: int, *, cut: float = 0.0) -> None:
        """The thread that makes this call waits before it, or with a part `cut` of its bytes written."""
        self._state.cut, self._state.stopped = int(1000 * cut), 0
        self._state.stop_at = call

    def refuse_from(self, call: int, reason: int) -> None:
        """From this call on, calls that need room (FULL) or change anything (READ_ONLY) fail."""
        self._state.refuse, self._state.refuse_at = reason, call

    def release(self) -> None:
        """Lets the waiting call go on, also if it sees that only after the next moment was chosen."""
        self._state.released = (self._state.released + 1) % 2**32

    def shift_clock(self, seconds: int) -> None:
        """The wall clock of every process jumps."""
        self._state.clock += seconds

    def engines(self, mode: int) -> None:
        self._state.engine = mode

    def judges(self, mode: int) -> None:
        self._state.judge = mode

    @property
    def judge(self) -> int:
        return self._state.judge

    @property
    def engine(self) -> int:
        return self._state.engine

    @property
    def calls(self) -> int:
        return self._state.calls

    @property
    def stopped(self) -> int:
        """The process whose call waits, 0 for none."""
        return self._state.stopped

    @property
    def refused(self) -> int:
        """Calls that have failed."""
        return self._state.refused

    @property
    def where(self) -> str:
        """The call that waits, or that failed first: what it does, and to which file of the folder."""
        return self._state.where.decode(errors="replace")
