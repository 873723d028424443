"""`--dry-run device`: the step on real ranks, its memory beside the plan's, and a run folder that is not touched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from megatron_lwz.cli import common, train_sft
from megatron_lwz.config import load_config
from megatron_lwz.distributed import launch
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.planner import device
from megatron_lwz.rehearsal import shim
from tests.support.files import contents
from tests.support.grpo_runs import write_example
from tests.support.stages import run

DEVICE = ("--dry-run", "device")
PARTS = ("parameters", "gradients", "optimizer")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose prompts and instructions are not there: the step needs none of them."""
    folder = tmp_path_factory.mktemp("device")
    path = write_example(
        folder, training={"precision": "bf16", "sequence_length": 80}, data={"instructions": ["rows.jsonl"]}
    )
    (folder / "prompts.jsonl").unlink()
    return path


def test_four_ranks_take_the_bytes_of_the_plan_and_leave_the_run_folder_alone(config: Path) -> None:
    try:
        shim.build()
    except EnvironmentSetupError as error:
        pytest.skip(str(error))
    before = contents(config.parent)
    done = run("train_grpo", str(config), "parallel.tensor=2", "parallel.overlap=true", *DEVICE, ranks=4)
    assert done.returncode == 0, done.stderr
    assert contents(config.parent) == before and not (config.parent / "run").exists()
    assert "dry run (device) of grpo: 4 GPUs, tensor 2 × context 1 × pipeline 1 × data 2" in done.stdout
    ratios = dict(re.findall(r"│ (at most: .*?|\w+)\s+│.*│\s+(\S+) │", done.stdout))
    assert {part: ratios[part] for part in PARTS} == dict.fromkeys(PARTS, "1.000"), done.stdout
    assert {"at most: start", "at most: update", "at most: optimizer step", "at most: export"} <= set(ratios)
    assert "the step fits; nothing was written, no rollout was made" in done.stdout


def test_every_stage_makes_its_step_on_one_rank(config: Path) -> None:
    settings = ["reward_model.pairs=[pairs.jsonl]", "data.corpus=[c.jsonl]"]
    read = load_config(config, settings)
    for stage in ("grpo", "sft", "pretrain", "reward_model"):
        try:
            (found,) = device.measure(read, stage)
        finally:
            launch.shutdown()
        assert found.state["gradients"] == 2 * found.state["parameters"], "fp32 for bf16"
        assert found.peak >= 0 == found.rank == found.stage and found.reserved is None
        assert {"start", "update", "optimizer step", "export"} <= set(found.instants)
        assert ("validation" in found.instants) == (stage in ("sft", "pretrain"))


def test_too_little_memory_is_one_line_that_says_what_to_change(config: Path, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    monkeypatch.setattr(device, "run_step", full)
    assert common.run(train_sft.main, [str(config), *DEVICE]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: --dry-run device: out of memory at the instant 'start': change parallel, training.recompute"
    )
    assert line.endswith("(CUDA out of memory)") and not (config.parent / "run").exists()


def test_other_errors_and_options_are_what_they_are(config: Path, monkeypatch, capsys) -> None:
    assert common.run(train_sft.main, [str(config), *DEVICE, "--gpus", "8"]) == 2
    assert "--gpus: only with --dry-run shapes" in capsys.readouterr().err
    assert common.run(train_sft.main, [str(config), *DEVICE, "parallel.tensor=3"]) == 2
    assert "config key 'parallel.tensor' = 3" in capsys.readouterr().err

    def broken(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(device, "run_step", broken)
    with pytest.raises(RuntimeError, match="something else"):
        common.run(train_sft.main, [str(config), *DEVICE])
