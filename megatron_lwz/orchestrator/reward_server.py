"""The models of a run's rewards: started here from local folders, or already running elsewhere."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.config.base import ServedSection
from megatron_lwz.distributed import environment
from megatron_lwz.distributed.servers import server_process
from megatron_lwz.errors import ConfigError, EngineError
from megatron_lwz.http.process import ServerProcess
from megatron_lwz.run_paths import RunPaths

START_SECONDS = 600.0
RESTARTS = 5
"""Restarts in a row, without an answer in between, after which the server is given up: its component is masked."""
_CHECK_SECONDS = 10.0
_ANSWER_SECONDS = 20.0
_MISSED_CHECKS = 6
_log = logging.getLogger(__name__)


@contextmanager
def open_reward_servers(config: Config, run: RunPaths) -> Iterator[Config]:
    """Yields the config with the addresses of the servers of its rewards' models. Rank 0 only, from the main thread.

    A server for `reward.writing.hf` and one for `reward.continuation.hf` are started, and stopped at the end of the
    block. Without these components nothing is started. Raises ConfigError or EngineError.
    """
    writing, continuation = config.reward.writing, config.reward.continuation
    if writing.hf is not None and writing.url is None and writing.api != "score":
        raise ConfigError("reward.writing.api", writing.api, "the server that the run starts for `hf` speaks `score`")
    if continuation.hf is not None and continuation.url is None and continuation.api != "likelihood":
        advice = "the server that the run starts for `hf` speaks `likelihood`; name the vLLM server's address in url"
        raise ConfigError("reward.continuation.api", continuation.api, advice)
    likelihood = ("--likelihood", "--template", continuation.template)
    precision = config.training.precision
    with (
        _served(writing, precision, run.reward_model_log) as here,
        _served(continuation, precision, run.continuation_model_log, *likelihood) as there,
    ):
        update = {
            "writing": writing.model_copy(update={"url": here}),
            "continuation": continuation.model_copy(update={"url": there}),
        }
        yield config.model_copy(update={"reward": config.reward.model_copy(update=update)})


@contextmanager
def _served(section: ServedSection, precision: str, log_path: Path, *flags: str) -> Iterator[str | None]:
    """Yields the address of the server of `section.hf`, which runs inside the block; the section's own `url` if it needs none."""
    if section.hf is None or section.url is not None:
        yield section.url
        return
    options = {
        "--model": section.hf,
        "--tokens-per-batch": section.tokens_per_batch,
        "--dtype": precision,
        "--served-model-name": Path(section.hf).resolve().parent.name,
    }

    def process(predecessor: ServerProcess | None) -> ServerProcess:
        return server_process(
            "megatron_lwz.cli.serve_reward",
            options,
            *flags,
            token_name="LWZ_REWARD_TOKEN",
            threads=section.threads,
            log_path=log_path,
            successor_of=predecessor,
        )

    server = process(None)
    with environment.lent(section.api_key_env, str(server.token)):
        server.start()
        try:
            server.wait_ready(START_SECONDS)
        except BaseException:
            server.stop()
            raise
        with kept_running(server, process):
            yield server.url


@contextmanager
def kept_running(
    server: ServerProcess,
    successor: Callable[[ServerProcess], ServerProcess],
    *,
    check_seconds: float = _CHECK_SECONDS,
    answer_seconds: float = _ANSWER_SECONDS,
) -> Iterator[None]:
    """Inside the block a started server is restarted when it has ended or no longer answers; then it is stopped.

    `successor(server)` returns a server, not started yet, that takes over the address and the token.
    """
    over = threading.Event()

    def keep() -> None:
        current, missed, restarts = server, 0, 0
        while not over.wait(check_seconds):
            alive = current.alive()
            if alive and current.healthy(answer_seconds):
                missed = restarts = 0
                continue
            missed += 1
            if alive and missed < (_MISSED_CHECKS if restarts == 0 else START_SECONDS / check_seconds):
                continue
            why = "does not answer" if alive else "has ended"
            current.stop(timeout=0.0)
            if restarts == RESTARTS:
                _log.warning(
                    "%s: %s %d times in a row: it is given up; %s", current.url, why, restarts + 1, current.last_words()
                )
                return
            _log.warning("%s: %s: it is started again; %s", current.url, why, current.last_words())
            missed, restarts = 0, restarts + 1
            current = successor(current)
            try:
                current.start()
            except EngineError as error:
                _log.warning("%s", error)
                return
        current.stop()

    thread = threading.Thread(target=keep, name="reward server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        server.stop()
