"""The reward model of a run: started here from a local folder, or already running elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment
from megatron_lwz.distributed.servers import server_process
from megatron_lwz.errors import ConfigError
from megatron_lwz.run_paths import RunPaths

START_SECONDS = 600.0


@contextmanager
def open_reward_server(config: Config, run: RunPaths) -> Iterator[Config]:
    """Yields the config with the address of the writing reward's server. Rank 0 only, from the main thread.

    A server for `reward.writing.hf` is started, and stopped at the end of the block. Without this component nothing is
    started. Raises ConfigError or EngineError.
    """
    section = config.reward.writing
    if section.hf is None or section.url is not None:
        yield config
        return
    if section.api != "score":
        raise ConfigError("reward.writing.api", section.api, "the server that the run starts for `hf` speaks `score`")
    options = {
        "--model": section.hf,
        "--tokens-per-batch": section.tokens_per_batch,
        "--dtype": config.training.precision,
        "--served-model-name": Path(section.hf).resolve().parent.name,
    }
    server = server_process(
        "megatron_lwz.cli.serve_reward",
        options,
        token_name="LWZ_REWARD_TOKEN",
        threads=section.threads,
        log_path=run.reward_model_log,
    )
    with environment.lent(section.api_key_env, str(server.token)):
        server.start()
        try:
            server.wait_ready(START_SECONDS)
            writing = section.model_copy(update={"url": server.url})
            yield config.model_copy(update={"reward": config.reward.model_copy(update={"writing": writing})})
        finally:
            server.stop()
