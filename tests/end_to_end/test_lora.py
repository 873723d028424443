"""LoRA through the commands: GRPO over a frozen base, resumed, and exported merged or as an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_lwz.metrics import read_metrics
from tests.support.grpo_runs import train, write_example
from tests.support.stages import rows_of, run

LORA = ("lora.rank=4", "lora.alpha=16", "lora.ranks.down_proj=8", "optimizer.lr=0.02")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an example: two steps, then a third by another start."""
    folder = tmp_path_factory.mktemp("lora")
    config = write_example(folder, data={"held_out_prompts": None}, grpo={"kl_coefficient": 0.1, "kl_estimator": "k3"})
    train(config, *LORA, "training.steps=2")
    train(config, *LORA, "training.steps=3")
    return folder


def test_engines_write_with_base_and_adapter_and_the_reference_is_the_base(trained: Path) -> None:
    rows = read_metrics(trained / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(0 < row["mismatch/difference/max"] <= 1e-4 and row["grad_norm"] > 0 for row in rows)
    assert rows[0]["kl"] == 0 and all(row["kl"] > 1e-4 for row in rows[1:])


def test_checkpoints_hold_the_adapter_and_are_exported_in_both_ways(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "run" / "checkpoints" / "step_00000003"
    export = ("convert", "export", "--checkpoint", str(checkpoint), "--out")
    for out, more in (("merged", ()), ("adapter", ("--adapter",))):
        done = run(*export, str(tmp_path / out), *more)
        assert done.returncode == 0, done.stderr
    done = run("convert", "verify", "--hf", str(tmp_path / "merged"), "--checkpoint", str(checkpoint), "--length", "16")
    assert done.returncode == 0 and "function: the log-probs are those of the folder" in done.stdout, done.stderr
    version = max((trained / "run" / "weights").iterdir(), key=lambda path: path.name)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (version, tmp_path / "merged"))
    assert theirs.keys() == ours.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 2
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 8


def test_another_base_or_adapter_is_refused_in_one_line(trained: Path) -> None:
    for changed, said in {
        "lora.alpha=8": "keeps 16.0 (the adapter in the checkpoints",
        "lora.ranks.q_proj=2": "config key 'lora.ranks",
        "run.seed=5 run.allow_change=run.seed": "its adapter belongs to another base model (checksum ",
    }.items():
        done = run("train_grpo", str(trained / "config.yaml"), *LORA, *changed.split(), "training.steps=4")
        assert done.returncode == 2 and said in done.stderr.strip().splitlines()[-1], done.stderr
    assert [row["step"] for row in rows_of(trained / "run")] == [1, 2, 3]


@pytest.mark.long  # what GRPO does above is in make test
def test_fine_tuning_learns_and_a_run_of_two_starts_is_one_of_one_bit_for_bit(tmp_path: Path) -> None:
    rows = [{"prompt": f"Count from {i}", "response": " ".join(str(i + n) for n in range(6))} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        "data": {"instructions": [str(tmp_path / "rows.jsonl")]},
        "training": {"sequences_per_step": 8, "sequence_length": 200, "precision": "bf16"},
        "checkpoint": {"interval": 3},
    }
    config = write_example(tmp_path, **sections)
    for name, starts in (("whole", ["12"]), ("parts", ["6", "12"])):
        for steps in starts:
            options = (*LORA, f"run.dir={tmp_path / name}", f"training.steps={steps}", "parallel.tensor=2")
            done = run("train_sft", str(config), *options, ranks=2)
            assert done.returncode == 0, done.stderr
    whole = rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "parts") == whole
    assert whole[-1]["loss"] < 0.9 * whole[0]["loss"]
    weights = [load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
