"""Rank side of test_engine: the policy of an embedded engine that several ranks share."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_lwz.cli import common, serve_engine
from megatron_lwz.distributed import launch
from megatron_lwz.errors import CheckpointError
from megatron_lwz.models.decoding import NotFiniteError
from megatron_lwz.models.decoding_cache import CachedSequence
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


def weights_that_are_not_finite(good: str, bad: str, huge: str) -> dict[str, Any]:
    """Loads weights that are not finite, then such whose logits are not, on both ranks. Returns what each says."""
    policy = ServedPolicy(Path(good))
    try:
        decoder, before = policy.decoder(1), policy.checksum()
        with pytest.raises(CheckpointError) as refused:
            policy.reload(bad)
        unchanged = policy.checksum() == before
        policy.reload(huge)
        sequence = CachedSequence((1, 2, 3))
        decoder.add(sequence)
        with pytest.raises(NotFiniteError) as failed:
            decoder.step()
        decoder.remove(sequence)
        decoder.forget_prefixes()
        policy.reload(good)
        decoder.add(CachedSequence((1, 2, 3)))
        tokens = [sampled.token for _ in range(3) for sampled in decoder.step()]
        return {"refused": refused.value.advice, "unchanged": unchanged, "failed": str(failed.value), "tokens": tokens}
    finally:
        launch.shutdown()


def taken_port(folder: str, port: int) -> tuple[int, str]:
    """Starts the engine on all ranks; returns the exit status and what was said on stderr."""
    with redirect_stderr(io.StringIO()) as said:
        status = common.run(serve_engine.main, ["--model", folder, "--port", str(port)])
    return status, said.getvalue()
