"""An embedded engine as a child process."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from megatron_lwz.distributed import environment
from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess


def engine_process(
    model: Path,
    *,
    slots: int,
    dtype: str,
    threads: int,
    log_path: Path,
    max_length: int | None = None,
    successor_of: ServerProcess | None = None,
) -> ServerProcess:
    """An engine for a Hugging Face folder on a free loopback port, with a fresh token; not started yet.

    `threads` 0: all cores. `max_length` counts prompt + response tokens; None: the model's own. A successor has the port
    and the token of the engine that ended.
    """
    port = successor_of.port if successor_of else free_port()
    token = (successor_of.token if successor_of else None) or secrets.token_urlsafe(24)
    cores = threads or os.cpu_count() or 1
    options = {"--model": model, "--port": port, "--slots": slots, "--dtype": dtype, "--threads": cores}
    if max_length is not None:
        options["--max-length"] = max_length
    return ServerProcess(
        [
            sys.executable,
            "-m",
            "megatron_lwz.cli.serve_engine",
            *(str(part) for pair in options.items() for part in pair),
        ],
        url=f"http://127.0.0.1:{port}",
        token=token,
        env=environment.child_environment(LWZ_ENGINE_TOKEN=token, OMP_NUM_THREADS=str(cores)),
        log_path=log_path,
    )
