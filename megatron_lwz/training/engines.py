"""The engines of a run: started here (embedded, on the trainer's first host) or already running elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment
from megatron_lwz.errors import EngineError
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.engine.process import engine_process
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
        pool = make_pool(config, section.urls, environment.get(section.api_key_env))
        check_logprobs(pool.models(), temperature=section.temperature, top_p=section.top_p)
        yield pool
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


def check_logprobs(models: Mapping[str, Mapping[str, Any]], *, temperature: float, top_p: float) -> None:
    """The loss needs log-probs of the full softmax at the sampling temperature. Raises EngineError for any others.

    `models`: URL → the engine's entry of /v1/models. An engine that does not say which it gives (vLLM) is trusted: start
    it with `--logprobs-mode processed_logprobs` and keep top_p at 1.
    """
    fitting = {"full_softmax_at_temperature"}
    if top_p == 1:
        fitting.add("processed_logprobs")
    if temperature == 1:
        fitting.add("raw_logprobs")
    for url, entry in models.items():
        mode = entry.get("logprobs_mode")
        if mode is not None and mode not in fitting:
            advice = f"gives {mode}, but temperature {temperature} and top_p {top_p} need one of {sorted(fitting)}"
            raise EngineError(url, advice)


def make_pool(config: Config, urls: tuple[str, ...], token: str | None) -> EnginePool:
    """A pool of running engines, with the run's limits."""
    clients = [EngineClient(url, token, timeout=config.rollout.request_timeout) for url in urls]
    return EnginePool(clients, concurrency=config.rollout.concurrency)
