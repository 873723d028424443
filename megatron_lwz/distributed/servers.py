"""Our own servers as child processes: on a free loopback port, with a fresh token, outside torchrun's world."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from megatron_lwz.distributed import environment
from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess


def server_process(
    module: str,
    options: Mapping[str, object],
    *flags: str,
    token_name: str,
    threads: int,
    log_path: Path,
    successor_of: ServerProcess | None = None,
) -> ServerProcess:
    """Returns the process `python -m module` with these options and flags, `--port` and `--threads`; it is not started yet.

    `token_name` is the environment variable from which the server reads its token. `threads` 0 means all cores. A
    server with `successor_of` takes over the port and the token of that earlier server.
    """
    port = successor_of.port if successor_of else free_port()
    token = (successor_of.token if successor_of else None) or secrets.token_urlsafe(24)
    cores = threads or os.cpu_count() or 1
    given = {**options, "--port": port, "--threads": cores}
    return ServerProcess(
        [sys.executable, "-m", module, *(str(part) for pair in given.items() for part in pair), *flags],
        url=f"http://127.0.0.1:{port}",
        token=token,
        env=environment.child_environment(**{token_name: token, "OMP_NUM_THREADS": str(cores)}),
        log_path=log_path,
    )
