"""Weights, keys and values of engines, and how long they write: formulas against counts of the model's own tensors."""

from __future__ import annotations

import math

import pytest

from megatron_lwz.config import Config, validate
from megatron_lwz.config.presets import PRESETS
from megatron_lwz.models.hf.name_map import tensor_shapes
from megatron_lwz.planner.engines import Engines, cache_bytes_per_token, engines_of, parameters
from megatron_lwz.planner.hardware import gpu


def grpo(preset: str, **sections: dict) -> Config:
    return validate({"model": {"preset": preset}, **sections})


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_those_of_the_tensors(preset: str) -> None:
    assert parameters(PRESETS[preset]) == sum(math.prod(shape) for shape in tensor_shapes(PRESETS[preset]).values())


def test_a_token_of_32b_takes_256_kib() -> None:
    assert cache_bytes_per_token(PRESETS["qwen2.5-32b"]) == 64 * 8 * 128 * 2 * 2 == 256 * 1024


def engines(tensor: int, count: int = 1, concurrency: int = 128) -> Engines:
    return Engines(PRESETS["qwen2.5-32b"], count, tensor, gpu("h100-80g"), 16048, concurrency)


def test_more_gpus_per_engine_leave_more_room() -> None:
    rooms = [engines(tensor).cached_tokens for tensor in (1, 2, 4, 8)]
    assert rooms == sorted(rooms) and rooms[0] < 16048 < rooms[1]
    assert engines(8).weights * 8 == pytest.approx(2 * parameters(PRESETS["qwen2.5-32b"]), rel=1e-6)


def test_rollouts_take_longer_with_more_and_longer_ones_and_never_end_without_room() -> None:
    def seconds(sequences: int, mean: float) -> float:
        return engines(4).seconds(sequences, mean, 14000, 300)

    assert seconds(64, 3000) < seconds(64, 7000) < seconds(256, 7000)
    assert engines(4, count=2).seconds(256, 7000, 14000, 300) < seconds(256, 7000)
    assert engines(1).seconds(1, 7000, 14000, 300) == math.inf


def test_engines_are_as_large_as_writes_fastest_unless_told() -> None:
    config = grpo("qwen2.5-32b")
    found = engines_of(config, gpu("h100-80g"), 32, None, 7000)
    assert found.tensor > 1 and found.count * found.tensor == 32
    assert engines_of(config, gpu("h100-80g"), 32, 8, 7000).count == 4
    small = engines_of(grpo("qwen2.5-0.5b"), gpu("h100-80g"), 1, 1, 2000)
    assert (small.count, small.tensor) == (1, 1)
