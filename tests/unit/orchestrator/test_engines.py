"""What is refused before an engine is asked, and the engines that a file lists."""

from pathlib import Path

import pytest

from megatron_lwz.config import validate
from megatron_lwz.errors import ConfigError, DataError, EngineError
from megatron_lwz.orchestrator.engines import EmbeddedEngine, running_pool


@pytest.mark.parametrize(
    ("rollout", "mismatch", "named"),
    [
        ({"max_staleness": 1}, "none", r"rollout\.max_staleness.*set grpo\.mismatch"),
        ({"max_staleness": 1, "over_sampling": 1.5}, "token", r"rollout\.over_sampling.*= 1\.5.*at most"),
    ],
)
def test_asynchronous_rollouts_that_would_be_biased_or_unbounded_are_refused(rollout, mismatch, named):
    config = validate({"data": {"prompts": "p.jsonl"}, "rollout": rollout, "grpo": {"mismatch": mismatch}})
    with pytest.raises(ConfigError, match=named):
        config.check_grpo()


def test_engines_are_listed_in_a_file(tmp_path: Path):
    listing = tmp_path / "engines.txt"
    listing.write_text("http://127.0.0.1:9  # not there\nhttp://127.0.0.1:11\n")
    config = validate(
        {"rollout": {"engines_file": str(listing), "engine": "vllm"}, "model": {"preset": "qwen2.5-0.5b"}}
    )
    pool = running_pool(config)
    assert [client.url for client in pool.clients] == ["http://127.0.0.1:9", "http://127.0.0.1:11"]
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9"):
        pool.meet()
    listing.write_text("localhost 8000\n")
    with pytest.raises(DataError, match=r"engines\.txt, line 1: 'localhost 8000' is no address"):
        running_pool(config)


def test_a_stopped_engine_is_not_started_again_and_a_successor_keeps_address_and_token(tmp_path: Path):
    engine = EmbeddedEngine(validate({}), tmp_path, threads=1, log_path=tmp_path / "engine.log")
    url, token = engine.server.url, engine.server.token
    engine.start_again(tmp_path / "weights")
    started = engine.server
    assert (started.url, started.token) == (url, token) and started.alive()
    engine.stop()
    engine.start_again(None)
    assert engine.server is started and engine.ended(failed=False)
