"""Rank side of test_engine: the policy of an embedded engine that several ranks share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_lwz.distributed import launch
from megatron_lwz.errors import CheckpointError
from megatron_lwz.rollout.engine.policy import ServedPolicy


def reload_on_one_rank(good: str, other: str, bad: str) -> list[str]:
    """Loads `other`, which is `bad` for rank 1; returns the error and the checksums before and after."""
    policy = ServedPolicy(Path(good))
    try:
        before = policy.checksum()
        with pytest.raises(CheckpointError) as refused:
            policy.reload(bad if dist.get_rank() == 1 else other)
        return [refused.value.advice, before, policy.checksum()]
    finally:
        launch.shutdown()
