"""A policy whose output layer shares the embedding's weight: a real vLLM on the CPU renews both, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_lwz.config.sections import RolloutSection
from megatron_lwz.errors import EngineError
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.tied_head import WORKER
from megatron_lwz.types import WeightVersion
from tests.support.engine_contract import check_engines
from tests.vllm.conftest import TOKEN, Served, vllm_server
from tests.vllm.scoring import rollouts_of, score
from tests.vllm.served_model import COOL, MAX_LENGTH, write_served_model

pytestmark = pytest.mark.vllm

SECTION = RolloutSection(temperature=COOL)


def test_new_weights_renew_a_tied_output_layer(
    make_controller: Callable[..., RolloutController], tmp_path: Path
) -> None:
    first, second = (write_served_model(tmp_path / str(seed), seed=seed, tied=True) for seed in (0, 1))
    options = ("--logprobs-mode", "processed_logprobs", "--worker-extension-cls", WORKER)
    guard = ("--middleware", "megatron_lwz.rollout.vllm_guard.RequireToken")
    with vllm_server(first, tmp_path / "vllm.log", *options, *guard) as url:
        check_engines([url], TOKEN, SECTION, longest=MAX_LENGTH, tied=True)
        pool = Served(url, first, second).pool()
        pool.push_weights(second, WeightVersion(1, 1, "second"))
        rollouts = rollouts_of(make_controller(pool, group_size=2, max_new_tokens=20).collect(1))
    found = score(second, tmp_path / "score", [rollout.prompt_tokens for rollout in rollouts], rollouts, COOL)
    gaps = [np.abs(own - rollout.logprobs).max() for own, rollout in zip(found, rollouts, strict=True)]
    assert max(gaps) <= 1e-4, "vLLM's own reload alone leaves the old output layer: gaps of several nats"


def test_vllm_that_would_keep_the_old_output_layer_is_refused(vllm: Served) -> None:
    with pytest.raises(EngineError, match=f"keeps a tied output layer .* --worker-extension-cls {WORKER}"):
        check_engines([vllm.url], TOKEN, SECTION, longest=MAX_LENGTH, tied=True)
