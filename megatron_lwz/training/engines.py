"""The engines of a run: started here (embedded, on the trainer's first host) or already running elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.contract import check_engines
from megatron_lwz.rollout.engine.process import engine_process
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.training.run_folder import RunFolder

START_SECONDS = 300.0


@contextmanager
def open_engines(config: Config, run: RunFolder, model: Path) -> Iterator[EnginePool]:
    """A pool of the engines at `rollout.urls`, or of one embedded engine that serves `model` until the end. Rank 0 only.

    Raises EngineError when an engine does not start, or one that runs does not answer or fit (rollout/contract.py).
    """
    section = config.rollout
    if section.urls:
        token = environment.get(section.api_key_env)
        check_engines(section.urls, token, section, longest=config.data.max_prompt_tokens + section.max_new_tokens)
        yield make_pool(config, section.urls, token)
        return
    server = embedded_server(config, model, threads=section.engine_threads, log_path=run.root / "engine.log")
    server.start()
    try:
        server.wait_ready(START_SECONDS)
        yield make_pool(config, (server.url,), server.token)
    finally:
        server.stop()


def embedded_server(config: Config, model: Path, *, threads: int, log_path: Path) -> ServerProcess:
    """An embedded engine for `model` with the run's limits, not started yet; `threads` 0: all cores."""
    return engine_process(
        model,
        slots=config.rollout.concurrency,
        max_length=config.data.max_prompt_tokens + config.rollout.max_new_tokens,
        dtype=config.training.precision,
        threads=threads,
        log_path=log_path,
    )


def make_pool(config: Config, urls: tuple[str, ...], token: str | None) -> EnginePool:
    """A pool of running engines, with the run's limits."""
    clients = [EngineClient(url, token, timeout=config.rollout.request_timeout) for url in urls]
    return EnginePool(clients, concurrency=config.rollout.concurrency)
