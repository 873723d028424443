"""Engines whose log-probs the loss cannot use are refused before a rollout is written."""

import pytest

from megatron_lwz.config import validate
from megatron_lwz.errors import ConfigError, EngineError
from megatron_lwz.training.engines import check_logprobs


@pytest.mark.parametrize(
    ("mode", "temperature", "top_p", "fits"),
    [
        ("full_softmax_at_temperature", 0.8, 0.9, True),
        ("processed_logprobs", 0.8, 1.0, True),
        ("processed_logprobs", 0.8, 0.9, False),  # renormalised over the nucleus
        ("raw_logprobs", 1.0, 1.0, True),
        ("raw_logprobs", 0.8, 1.0, False),
        (None, 0.8, 0.9, True),
    ],
)
def test_logprob_mode_must_fit_the_sampling(mode, temperature, top_p, fits):
    models = {"http://127.0.0.1:1": {"id": "policy"} | ({"logprobs_mode": mode} if mode else {})}
    if fits:
        check_logprobs(models, temperature=temperature, top_p=top_p)
    else:
        with pytest.raises(EngineError, match=f"gives {mode}"):
            check_logprobs(models, temperature=temperature, top_p=top_p)


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
