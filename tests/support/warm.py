"""Starts `python -m module …` as a fork of a process that has made the imports, which take longer than most runs.

    process = warm.Popen(command, cwd=ROOT, env=variables())      # a subprocess.Popen, and used like one
    done = warm.run(command, cwd=ROOT, env=variables())           # a subprocess.CompletedProcess with texts

What is started is a real child of the caller, with the command's arguments, environment, folder, streams and session; it
runs the module as `__main__`, and ends as an interpreter ends. What it starts itself (torchrun's ranks, engines, the
rollout process) is forked, too: before a process runs, it leaves a fork of itself behind that has done nothing yet, and
asks that one. A command that a fork cannot be is executed as usual: another program, or variables that are read while
modules are imported.

What differs from the real command: imports that are not needed are there as well, all processes share one seed of str
hashes, the process table shows this module's command line (only the name is the task's), and limits and ignored signals
are not those that the caller has set itself. Tests of such things, and a test of each stage, use the real command line.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import psutil

from tests.support.paths import ROOT

ORPHAN = "megatron_lwz.http.orphan"
MODULES = ("megatron_lwz.cli.", ORPHAN, "torch.distributed.run", "tests.end_to_end.", "tests.support.",
           "tests.unit.orchestrator.")  # fmt: skip
"""What may be forked: names, or beginnings of them. Of the others, some must see an interpreter without imports."""
IMPORTS = (
    "megatron_lwz.training.grpo", "megatron_lwz.training.pretrain", "megatron_lwz.training.sft",
    "megatron_lwz.training.reward_model", "megatron_lwz.training.token_logprobs", "megatron_lwz.report",
    "megatron_lwz.rollout.engine.server", "megatron_lwz.cli.common", "megatron_lwz.cli.results",
    "torch.distributed.run", "torch.utils.tensorboard", "numpy.random",
)  # fmt: skip
READ_AT_IMPORT = (
    "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "MALLOC_", "LD_", "LC_", "LANG", "TZ", "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
"""Beginnings of the variables in which a fork must not differ from the process that made the imports."""
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
_MOST_STREAMS = 64


@dataclass(frozen=True)
class Task:
    """What a fork is to become; `streams` are its file descriptors, sent beside in this order."""

    command: list[str]
    env: dict[str, str]
    cwd: str
    streams: list[int]
    session: bool


def run(command: Sequence[str], *, timeout: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with captured texts; when the time is over, all that it has started ends, too."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, text=True, **streams, **options) as process:
        try:
            said, errors = process.communicate(timeout=timeout)
        except BaseException:
            for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, said, errors)


def _execute_child(self: subprocess.Popen, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Any,
                   cwd: Any, env: Mapping[str, str] | None, startupinfo: Any, creationflags: int, shell: bool, p2cread: int,
                   p2cwrite: int, c2pread: int, c2pwrite: int, errread: int, errwrite: int, *rest: Any) -> None:  # fmt: skip
    """In place of the method of `subprocess.Popen`."""
    _restore_signals, gid, gids, uid, umask, session, group = rest
    unusual = [value for value in (executable, preexec_fn, gid, gids, uid, umask, group) if value not in (None, -1)]
    env = os.environ if env is None else env
    if shell or unusual or not _can_be(args, env):
        _really_execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
                              creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest)  # fmt: skip
        return
    task = Task(list(args), dict(env), os.fspath(cwd or Path.cwd()), [0, 1, 2, *pass_fds], session)
    streams = [fd if fd >= 0 else own for own, fd in enumerate((p2cread, c2pwrite, errwrite))]
    try:
        self.pid = _forker().start(task, [*streams, *pass_fds])
        self._child_created = True
    finally:
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


_really_execute_child = subprocess.Popen._execute_child


def _forget() -> None:
    subprocess.Popen._execute_child = _really_execute_child


@contextmanager
def forking() -> Iterator[None]:
    """Inside, `subprocess.Popen` is `Popen`: for code that starts processes itself."""
    _forker()  # it is started as usual
    subprocess.Popen._execute_child = _execute_child
    try:
        yield
    finally:
        _forget()


class Popen(subprocess.Popen):
    """As its base; the process is forked where that is possible."""

    _execute_child = _execute_child


def _can_be(args: Any, env: Mapping[str, str]) -> bool:
    if isinstance(args, str | bytes | os.PathLike) or _read_at_import(env) != _own_variables():
        return False
    python, *words = args
    words = words[1:] if words[:1] == ["-u"] else words
    return python == sys.executable and words[:1] == ["-m"] and len(words) > 1 and words[1].startswith(MODULES)


def _read_at_import(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(READ_AT_IMPORT)}


@cache
def _own_variables() -> dict[str, str]:
    """Of the process that has made the imports."""
    from tests.support.stages import variables  # which starts stages by this module

    return _read_at_import(variables())


class _Forker:
    """The near end of the connection to a process that forks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def start(self, task: Task, streams: Sequence[int]) -> int:
        """The process id of a new child of this process."""
        with self._lock:
            _prctl(PR_SET_CHILD_SUBREAPER, 1)  # its first parent ends at once, and leaves it to us
            try:
                content = json.dumps(vars(task)).encode()
                socket.send_fds(self._connection, [len(content).to_bytes(8, "big")], list(streams))
                self._connection.sendall(content)
                return int.from_bytes(_receive(self._connection, 8), "big")
            finally:
                _prctl(PR_SET_CHILD_SUBREAPER, 0)


@cache
def _forker() -> _Forker:
    """In a process that has made no imports for it: of a new process that does; it ends when this one does."""
    near, far = socket.socketpair()
    with far:
        from tests.support.stages import variables

        command = [sys.executable, "-m", "tests.support.warm", str(far.fileno())]
        subprocess.Popen(command, cwd=ROOT, env=variables(), pass_fds=[far.fileno()], start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    return _Forker(near)


def _prctl(option: int, value: int) -> None:
    assert ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0


def _name_process(module: str) -> None:
    """In the process table: the module's last name (`run` for torchrun), of a rank with its number."""
    name = ".".join([module.rpartition(".")[2], *([os.environ["RANK"]] if "RANK" in os.environ else [])])
    assert ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0) == 0


def _receive(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = connection.recv(size - len(content))
        if not piece:
            raise ConnectionError("the process that forks has ended")
        content += piece
    return content


def _next_task(connection: socket.socket) -> Task:
    """Forks for every request, and ends with the connection; returns in each fork, with what it is to become.

    The fork's parent ends at once, so that the fork goes to its nearest ancestor that takes orphans in: who asks.
    """
    while True:
        head, streams, _, _ = socket.recv_fds(connection, 8, _MOST_STREAMS)
        if not head:
            os._exit(0)
        task = Task(**json.loads(_receive(connection, int.from_bytes(head, "big"))))
        answer, said = os.pipe()
        parent = os.fork()
        if parent == 0:
            parent = os.getpid()
            child = os.fork()
            if child:
                os.write(said, child.to_bytes(8, "big"))
                os._exit(0)
            while os.getppid() == parent:
                time.sleep(0.0002)
            for ours in (answer, said, connection.detach()):
                os.close(ours)
            _take_streams(streams, task.streams)
            return task
        os.waitpid(parent, 0)
        connection.sendall(os.read(answer, 8))
        for ours in (answer, said, *streams):
            os.close(ours)


def _take_streams(given: Sequence[int], numbers: Sequence[int]) -> None:
    """Moves descriptors to these numbers; from above all of them first, since the two may overlap."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, max(numbers) + _MOST_STREAMS) for fd in given]
    for fd in given:
        os.close(fd)
    for fd, number in zip(moved, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)


def _become(task: Task) -> None:
    """Everything of a new interpreter but its memory."""
    os.environ.clear()
    os.environ.update(task.env)
    os.chdir(task.cwd)
    sys.path[0] = task.cwd
    if task.session:
        os.setsid()
    tempfile.tempdir = None
    sys.modules["numpy.random"].seed()


def _open_streams(*, unbuffered: bool) -> None:
    """`sys.stdin` and so on for what the descriptors now are."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        options = {"encoding": before.encoding, "errors": before.errors, "closefd": False}
        if unbuffered and number:
            raw = io.FileIO(number, "w", closefd=False)
            stream = io.TextIOWrapper(raw, encoding=before.encoding, errors=before.errors, write_through=True)
        else:
            stream = os.fdopen(number, "w" if number else "r", **options)
        if number == 2:
            stream.reconfigure(line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class _Replaced(BaseException):
    """In place of exec."""

    def __init__(self, command: list[str]) -> None:
        self.command = command


def _execvp(program: str, command: list[str]) -> NoReturn:
    if _can_be(command, os.environ):
        raise _Replaced(command)
    _real_execvp(program, command)


_real_execvp = os.execvp


def _execute(command: list[str]) -> None:
    """Runs the module as `python -m` does."""
    words = command[1:]
    unbuffered = words[0] == "-u"
    words = words[unbuffered:]
    _open_streams(unbuffered=unbuffered)
    sys.orig_argv[:] = command
    sys.argv[:] = words[1:]
    _name_process(words[1])
    try:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    except _Replaced as instead:
        following = instead.command
    else:
        return
    _execute(following)


def _end(work: Callable[[], None]) -> NoReturn:
    """As an interpreter ends, except that it does not take the modules apart: that would copy all of the shared memory."""
    status: Any = 1
    try:
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int | None) else print(end.code, file=sys.stderr) or 1
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit((status or 0) & 0xFF)


def main(connection: socket.socket) -> None:
    """Serves; in a fork, runs what it was forked for, and leaves a fork behind that serves it."""
    while True:
        task = _next_task(connection)
        _become(task)
        near, connection = socket.socketpair()
        if os.fork():
            break
        near.close()
        for number in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    connection.close()
    forker = _Forker(near)
    globals()["_forker"] = lambda: forker
    subprocess.Popen._execute_child = _execute_child
    os.register_at_fork(after_in_child=_forget)  # its forks are no ancestors of what the other fork starts
    os.execvp = _execvp
    _end(lambda: _execute(task.command))


if __name__ == "__main__":
    gc.disable()  # until all is imported
    warm = importlib.import_module("tests.support.warm")  # not as __main__, which each fork becomes
    warm._own_variables()
    for module in IMPORTS:
        importlib.import_module(module)
    gc.collect()
    gc.enable()
    gc.freeze()  # else each collection in a fork looks at all that was imported, and has its pages copied
    assert len([*Path("/proc/self/task").iterdir()]) == 1, (
        "a fork would have none of the other threads, and all their locks"
    )
    warm.main(socket.socket(fileno=int(sys.argv[1])))
