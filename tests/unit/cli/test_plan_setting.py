"""Which engines `lwz plan` counts with: those asked for, those of the config's launch, or half of the GPUs."""

from __future__ import annotations

import argparse

import pytest

from megatron_lwz.cli.plan_setting import setting_of
from megatron_lwz.config import validate

LAUNCH = {"nodes": 2, "gpus_per_node": 8, "engines": {"nodes": 1, "per_node": 2, "gpus": 4}}
CONFIG = validate(
    {"model": {"preset": "qwen2.5-7b"}, "rollout": {"engine": "vllm", "urls": ["http://127.0.0.1:1"]}, "launch": LAUNCH}
)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"gpus": 24}, (16, 2, 4)),
        ({"gpus": 24, "engine_tensor": 2}, (16, 4, 2)),
        ({"gpus": 24, "engine_gpus": 4, "engine_tensor": 1}, (20, 4, 1)),
        ({"gpus": 16, "engine_tensor": 4}, (8, 2, 4)),
    ],
)
def test_engines_are_those_of_the_launch_where_it_describes_as_many_gpus(given: dict, found: tuple) -> None:
    none = {"gpu": "h100-80g", "stage": "grpo", "engine_gpus": None, "engine_tensor": None, "mean_tokens": None}
    trainers, setting = setting_of(CONFIG, argparse.Namespace(**{**none, **given}))
    assert setting.engines is not None
    assert (trainers, setting.engines.count, setting.engines.tensor) == found
