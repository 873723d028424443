"""An embedded engine as a child process."""

from __future__ import annotations

from pathlib import Path

from megatron_lwz.distributed.servers import server_process
from megatron_lwz.http.process import ServerProcess


def engine_process(
    model: Path,
    *,
    slots: int,
    dtype: str,
    threads: int,
    log_path: Path,
    max_length: int | None = None,
    weights: Path | None = None,
    successor_of: ServerProcess | None = None,
) -> ServerProcess:
    """Returns an engine for a Hugging Face folder on a free loopback port, with a fresh token. It is not started yet.

    `threads` 0: all cores. `max_length` counts prompt + response tokens; None: the model's own. The engine may load new
    weights from below `weights`. A successor has the port and the token of the engine that ended.
    """
    options: dict[str, object] = {"--model": model, "--slots": slots, "--dtype": dtype}
    if max_length is not None:
        options["--max-length"] = max_length
    if weights is not None:
        options["--weights-dir"] = weights
    return server_process(
        "megatron_lwz.cli.serve_engine",
        options,
        token_name="LWZ_ENGINE_TOKEN",
        threads=threads,
        log_path=log_path,
        successor_of=successor_of,
    )
