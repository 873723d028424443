"""`--profile`: what it accepts; wrong values are one line with what is expected."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_lwz.cli import common, pretrain, profile, train_grpo, train_reward_model, train_sft
from megatron_lwz.config import validate
from megatron_lwz.planner.hardware import gpus, of_device
from megatron_lwz.profiling.spans import Window
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.profiler import Profiler


def test_steps_and_ranks() -> None:
    assert profile.window(None, 4) is None
    assert profile.window("steps=3-5", 4) == Window(3, 5, (0,))
    assert profile.window("steps=3,ranks=3,0,3", 4) == Window(3, 3, (0, 3))
    assert profile.window("ranks=1,steps=2-2", 4) == Window(2, 2, (1,))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("steps=5-3", "--profile steps=5-3: expected steps=FIRST-LAST with 1 <= FIRST <= LAST"),
        ("steps=0", "--profile steps=0: expected steps=FIRST-LAST with 1 <="),
        ("steps=-1", "--profile steps=-1: expected steps=FIRST-LAST, as in steps=3-5"),
        ("steps=³", "--profile steps=³: expected"),
        ("steps=", "--profile steps=: expected"),
        ("3-5", "--profile 3-5: expected steps=FIRST-LAST"),
        ("ranks=0", "--profile ranks=0: names no steps"),
        ("steps=3,steps=4", "--profile steps=3,steps=4: expected"),
        ("steps=3,ranks=1", "--profile ranks=1: expected numbers from 0 to 0, as in ranks=0: torchrun started 1 rank"),
        ("steps=3,ranks=a", "--profile ranks=a: expected numbers from 0 to 0"),
        ("steps=3 ranks=2", "--profile ranks=2: expected numbers from 0 to 0"),
        ("steps=3 training.steps=2", "--profile steps=3-3: the run has 2 steps: expected steps=FIRST-LAST with LAST at most 2"),
        ("steps=3 --dry-run shapes", "--profile: not with --dry-run"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_with_status_2(given: str, said: str, tmp_path: Path, capsys) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"run": {"dir": str(tmp_path / "run")}, "model": {"preset": "qwen2.5-7b"}}))
    assert common.run(train_grpo.main, [str(config), "--profile", *given.split(" ")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.parametrize("stage", [train_sft, pretrain, train_reward_model])
def test_every_stage_has_it(stage, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.yaml").write_text("")
    assert common.run(stage.main, [str(tmp_path), "--profile", "steps=5-3"]) == 2
    assert "1 <= FIRST <= LAST" in capsys.readouterr().err


def test_without_it_nothing_is_recorded_and_no_folder_made(tmp_path: Path) -> None:
    profiler = Profiler()
    profiler.check(1)
    with profiler, profiler.recording(RunPaths(tmp_path)):
        assert list(profiler.steps(iter([1, 2]))) == [1, 2]
    assert list(tmp_path.iterdir()) == []


def test_a_peak_is_that_of_a_known_card_or_of_the_config() -> None:
    assert of_device("NVIDIA H200") is gpus()["h200-141g"] and of_device("NVIDIA H100 PCIe") is None
    assert len({card.device for card in gpus().values()}) == len(gpus())
    config = validate({"training": {"precision": "bf16"}})
    assert profile.with_peak(config) is config, "no GPU here, so no peak"
