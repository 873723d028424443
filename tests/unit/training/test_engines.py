"""Settings of the rollouts that cannot be trained on are refused before an engine is asked."""

import pytest

from megatron_lwz.config import validate
from megatron_lwz.errors import ConfigError


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
