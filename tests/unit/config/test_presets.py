"""The published sizes, by their published parameter counts."""

from __future__ import annotations

import pytest

from megatron_lwz.config.presets import PRESETS
from megatron_lwz.planner.engines import parameters

PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}
"""Elements in the safetensors files on the Hugging Face hub; those of Qwen3-0.6B and 1.7B hold the tied layer twice."""


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count(name):
    assert parameters(PRESETS[name]) == PUBLISHED[name]
