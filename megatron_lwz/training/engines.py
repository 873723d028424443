"""The engines of a run: started here (embedded, on the trainer's first host) or already running elsewhere."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment
from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.training.run_folder import RunFolder

START_SECONDS = 300.0


@contextmanager
def open_engines(config: Config, run: RunFolder, model: Path) -> Iterator[EnginePool]:
    """A pool of the engines at `rollout.urls`, or of one embedded engine that serves `model` until the end. Rank 0 only.

    Raises EngineError when an engine does not start or answer.
    """
    section = config.rollout
    if section.urls:
        yield _pool(config, section.urls, environment.get(section.api_key_env))
        return
    port, token = free_port(), secrets.token_urlsafe(24)
    url = f"http://127.0.0.1:{port}"
    server = ServerProcess(
        _command(config, model, port),
        url=url,
        token=token,
        env=environment.child_environment(LWZ_ENGINE_TOKEN=token, OMP_NUM_THREADS=str(section.engine_threads or "")),
        log_path=run.root / "engine.log",
    )
    server.start()
    try:
        server.wait_ready(START_SECONDS)
        yield _pool(config, (url,), token)
    finally:
        server.stop()


def _command(config: Config, model: Path, port: int) -> list[str]:
    wanted = {
        "--model": model,
        "--port": port,
        "--slots": config.rollout.concurrency,
        "--max-length": config.data.max_prompt_tokens + config.rollout.max_new_tokens,
        "--dtype": config.training.precision,
        "--threads": config.rollout.engine_threads,
    }
    options = [str(part) for pair in wanted.items() for part in pair]
    return [sys.executable, "-m", "megatron_lwz.cli.serve_engine", *options]


def _pool(config: Config, urls: tuple[str, ...], token: str | None) -> EnginePool:
    clients = [EngineClient(url, token, timeout=config.rollout.request_timeout) for url in urls]
    return EnginePool(clients, concurrency=config.rollout.concurrency)
