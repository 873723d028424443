"""The precision that nobody chose is one that the machine computes fast."""

from __future__ import annotations

import logging

import pytest

from megatron_lwz import processor
from megatron_lwz.cli import train_options
from megatron_lwz.config import validate
from megatron_lwz.distributed import platform


@pytest.mark.parametrize(
    ("given", "fast", "gpu", "used"),
    [
        ({}, False, False, "fp32"),
        ({}, True, False, "bf16"),
        ({}, False, True, "bf16"),
        ({"precision": "bf16"}, False, False, "bf16"),
        ({"precision": "fp32"}, True, True, "fp32"),
    ],
)
def test_a_cpu_without_bf16_trains_in_fp32_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: dict, fast: bool, gpu: bool, used: str
) -> None:
    monkeypatch.setattr(processor, "has_fast_bf16", lambda: fast)
    monkeypatch.setattr(platform, "has_gpu", lambda: gpu)
    with caplog.at_level(logging.WARNING):
        config = train_options.for_this_machine(validate({"model": {"preset": "qwen2.5-0.5b"}, "training": given}))
    assert config.training.precision == used
    assert len(caplog.records) == (not given and used == "fp32")
    again = train_options.for_this_machine(validate(config.model_dump(mode="json")))  # a run that is taken up
    assert again.training.precision == used
