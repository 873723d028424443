"""The engines of a run: started here (embedded, on the trainer's first host) or already running elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.contract import check_engine
from megatron_lwz.rollout.engine.process import engine_process
from megatron_lwz.rollout.engine_list import EngineList
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.run_paths import RunPaths

START_SECONDS = 300.0


def running_engines(config: Config) -> EnginePool:
    """Returns a pool of the engines that run elsewhere. Rank 0 only.

    Raises EngineError when one does not meet the contract (rollout/contract.py), or when none answers.
    """
    pool = running_pool(config)
    pool.meet()
    return pool


@contextmanager
def embedded_engine(config: Config, run: RunPaths, model: Path) -> Iterator[EnginePool]:
    """Yields a pool of one engine that serves `model`, and stops it at the end of the block. Rank 0 only.

    Raises EngineError when it does not start.
    """
    engine = EmbeddedEngine(config, model, threads=config.rollout.engine_threads, log_path=run.engine_log)
    engine.server.start()
    try:
        engine.server.wait_ready(START_SECONDS)
        yield engine.pool()
    finally:
        engine.stop()


class EmbeddedEngine:
    """An embedded engine with the run's limits. Its address stays the same across restarts. `threads` 0: all cores."""

    def __init__(self, config: Config, model: Path, *, threads: int, log_path: Path) -> None:
        self._config = config
        self._model = model
        self._threads = threads
        self._log_path = log_path
        self._lock = threading.Lock()
        self._stopped = False
        self.server = self._process(model, None)
        """The engine's process, not started yet."""

    def pool(self) -> EnginePool:
        """Returns a pool that restarts the engine when it ends."""
        return make_pool(self._config, (self.server.url,), self.server.token, keeper=self)

    def ended(self, *, failed: bool) -> bool:
        """Whether the process has ended or must end: it reported that it cannot continue, or is stuck (`failed`)."""
        return failed or not self.server.alive()

    def start_again(self, weights: Path | None) -> None:
        """Restarts the engine at the same address with the weights in this folder, unless it was stopped.

        Raises EngineError.
        """
        with self._lock:
            if self._stopped:
                return
            self.server.stop(timeout=0.0)
            self.server = self._process(weights or self._model, self.server)
            self.server.start()

    def stop(self) -> None:
        """Ends the process permanently."""
        with self._lock:
            self._stopped = True
        self.server.stop()

    def last_words(self) -> str:
        """Returns the end of the engine's log, in one line."""
        return self.server.last_words()

    def _process(self, model: Path, predecessor: ServerProcess | None) -> ServerProcess:
        return engine_process(
            model,
            slots=self._config.rollout.concurrency,
            max_length=self._config.data.max_prompt_tokens + self._config.rollout.max_new_tokens,
            dtype=self._config.training.precision,
            threads=self._threads,
            log_path=self._log_path,
            weights=Path(self._config.run.dir),
            successor_of=predecessor,
        )


def running_pool(config: Config) -> EnginePool:
    """Returns a pool of the engines at `rollout.urls` or in `rollout.engines_file`.

    Raises DataError for a wrong file.
    """
    section = config.rollout
    client = client_maker(config, environment.get(section.api_key_env))
    longest = config.data.max_prompt_tokens + section.max_new_tokens
    listed = EngineList(Path(section.engines_file)) if section.engines_file is not None else None
    return EnginePool(
        [client(url) for url in section.urls],
        concurrency=section.concurrency,
        section=section.pool,
        check=partial(check_engine, section=section, longest=longest, tied=config.architecture().tie_word_embeddings),
        listed=(listed, client) if listed is not None else None,
    )


def make_pool(
    config: Config, urls: tuple[str, ...], token: str | None, keeper: EmbeddedEngine | None = None
) -> EnginePool:
    """Returns a pool of engines that are known to meet the contract, with the run's limits."""
    section = config.rollout
    client = client_maker(config, token)
    return EnginePool(
        [client(url) for url in urls], concurrency=section.concurrency, section=section.pool, keeper=keeper
    )


def client_maker(config: Config, token: str | None) -> Callable[..., EngineClient]:
    """Returns a function that makes clients with the run's limits, from a URL and other arguments of EngineClient."""
    vocabulary = config.architecture().vocab_size
    return partial(EngineClient, token=token, timeout=config.rollout.request_timeout, vocabulary=vocabulary)
