"""`lwz plan`: its options, and how it divides GPUs between trainer and engines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.cli import common, main
from megatron_lwz.cli.plan_setting import setting_of
from megatron_lwz.config import Config, validate


def config(**rollout: Any) -> Config:
    return validate({"model": {"preset": "qwen2.5-32b"}, "rollout": rollout})


def given(**options: Any) -> argparse.Namespace:
    known = {"gpus": 64, "gpu": "h100-80g", "stage": "grpo", "engine_gpus": None, "engine_tensor": None}
    return argparse.Namespace(**{**known, "mean_tokens": None, **options})


def test_half_of_the_gpus_write_unless_told() -> None:
    vllm = config(engine="vllm", urls=["http://127.0.0.1:8000"])
    trainers, setting = setting_of(vllm, given())
    assert setting.engines is not None
    assert (trainers, setting.engines.count * setting.engines.tensor, setting.embedded) == (32, 32, False)
    trainers, setting = setting_of(vllm, given(engine_gpus=16, engine_tensor=4))
    assert setting.engines is not None and (trainers, setting.engines.count) == (48, 4)


def test_engines_that_share_have_all_gpus_and_an_embedded_one_has_none_of_its_own() -> None:
    trainers, setting = setting_of(config(engine="vllm", urls=["http://127.0.0.1:8000"], colocated=True), given())
    assert setting.engines is not None and trainers == setting.engines.count * setting.engines.tensor == 64
    trainers, setting = setting_of(config(), given(gpus=2))
    assert setting.embedded and setting.engines is not None and (trainers, setting.engines.count) == (2, 1)


def test_other_stages_have_no_engines() -> None:
    trainers, setting = setting_of(config(), given(stage="pretrain"))
    assert (trainers, setting.engines, setting.work.tokens) == (64, None, 512 * 32768)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--gpus N: how many GPUs"),
        (["--gpus", "8", "--engine-gpus", "8"], "--engine-gpus 8: must leave GPUs of the 8"),
        (["--gpus", "8", "--gpu", "h900"], "--gpu h900: unknown"),
        (
            ["--gpus", "8", "--engine-gpus", "2", "rollout.engine=embedded", "rollout.urls=[]"],
            "the embedded engine runs",
        ),
        (["--table", "8,x"], "'x' is no whole number"),
    ],
)
def test_an_error_is_one_line_with_status_2(tmp_path: Path, options: list[str], said: str, capsys) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "{model: {preset: qwen2.5-7b}, data: {prompts: p.jsonl}, rollout: {engine: vllm, urls: ['http://127.0.0.1:1']}}"
    )
    assert common.run(main.dispatch, ["plan", str(file), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
