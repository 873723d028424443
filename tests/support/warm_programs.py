"""`python`, `torchrun` and `lwz` for scripts: programs that ask this process for a fork (tests/support/warm.py).

    with warm_programs(folder) as path:      # a folder for the front of PATH
        subprocess.run(["bash", script], env={**variables(), "PATH": f"{path}:{os.environ['PATH']}"})

The program that the script starts passes its arguments, environment, folder and streams on, and ends with the fork's status. SIGTERM
goes to the fork, SIGUSR1 to its children: `torchrun` ignores it. When the program is
killed, so is the fork with all that it has started.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if __name__ != "__main__":
    import psutil

    from tests.support import warm

PROGRAMS = {"python": [], "torchrun": ["-m", "torch.distributed.run"], "lwz": ["-m", "megatron_lwz.cli.main"]}


@contextmanager
def warm_programs(folder: Path) -> Iterator[Path]:
    """Serves until the block ends; gives the folder with the programs."""
    path = folder / "warm-bin"
    path.mkdir()
    address = folder / "warm.sock"
    for name, words in PROGRAMS.items():
        client = [sys.executable, "-S", "-E", str(Path(__file__)), str(address), *words]
        (path / name).write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
        (path / name).chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        yield path
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_run, args=(connection,), daemon=True).start()


def _run(connection: socket.socket) -> None:
    head, streams, _, _ = socket.recv_fds(connection, 8, 2)
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += connection.recv(size - len(text))
    asked = json.loads(text)
    process = warm.Popen(
        [sys.executable, *asked["words"]], cwd=asked["cwd"], env=asked["env"], stdin=subprocess.DEVNULL, stdout=streams[0],
        stderr=streams[1], start_new_session=True,
    )  # fmt: skip
    for stream in streams:
        os.close(stream)
    threading.Thread(target=_pass_signals, args=(connection, process), daemon=True).start()
    status = process.wait()
    with suppress(OSError):
        connection.sendall(bytes([status if status >= 0 else 128 - status]))


def _pass_signals(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    while number := connection.recv(1):
        _send(process, number[0])
    _send(process, signal.SIGKILL)  # of no effect after its end


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        whole = psutil.Process(process.pid)
        children = whole.children(recursive=number == signal.SIGKILL)
        for member in (
            children if number == signal.SIGUSR1 else [whole, *children] if number == signal.SIGKILL else [whole]
        ):
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)


if __name__ == "__main__":  # the program that a script starts; it imports nothing of ours
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(sys.argv[1])
        content = json.dumps({"words": sys.argv[2:], "cwd": os.getcwd(), "env": dict(os.environ)}).encode()  # noqa: PTH109
        socket.send_fds(server, [len(content).to_bytes(8, "big")], [1, 2])
        server.sendall(content)
        for one in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(one, lambda number, _frame: server.sendall(bytes([number])))
        answer = server.recv(1)
    sys.exit(answer[0] if answer else 1)
