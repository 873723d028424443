"""`--dry-run`: what is refused before anything is rehearsed, and that nothing is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lwz.cli import common, pretrain, train_dpo, train_grpo, train_reward_model, train_sft
from megatron_lwz.rehearsal import pool, shim
from tests.support.stages import ROOT, variables

SHAPES = ["--dry-run", "shapes"]


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"""
run: {{dir: {tmp_path / "run"}}}
model: {{preset: qwen2.5-7b}}
data: {{prompts: prompts.jsonl, instructions: [rows.jsonl], corpus: [corpus.json]}}
reward_model: {{pairs: [pairs.jsonl]}}
dpo: {{pairs: [pairs.jsonl]}}
training: {{tokens_per_micro_batch: 65536}}
"""
    )
    return str(file)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["parallel.tensor=3"], "config key 'parallel.tensor' = 3: must divide the model's 28 attention heads"),
        (["parallel.pipeline=3"], "config key 'parallel.pipeline' = 3: 3 pipeline chunks must divide the 28 layers"),
        (["--gpus", "6", "parallel.tensor=4"], "tensor × pipeline × context = 4': must divide the 6 ranks"),
        (["--gpu", "gtx-1080"], "--gpu gtx-1080: unknown, choose one of a100-80g"),
        (["training.tokens_per_micro_batch=1024"], "'training.tokens_per_micro_batch' = 1024: must hold"),
    ],
)
@pytest.mark.parametrize("stage", [train_grpo, train_sft, pretrain, train_reward_model, train_dpo])
def test_what_cannot_be_split_is_one_line_with_status_2(stage, config: str, options, said, capsys) -> None:
    assert common.run(stage.main, [config, *SHAPES, *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and error.count("\n") == 0
    assert not (Path(config).parent / "run").exists()


def test_its_options_mean_nothing_without_it(config: str, capsys) -> None:
    assert common.run(train_grpo.main, [config, "--gpus", "8"]) == 2
    assert "--gpus: only with --dry-run shapes" in capsys.readouterr().err


def test_a_missing_compiler_is_one_line(config: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(shim.shutil, "which", lambda _: None)
    assert common.run(train_sft.main, [config, *SHAPES]) == 2
    assert "no C++ compiler" in capsys.readouterr().err


def test_other_ranks_of_torchrun_leave_it_to_the_first(config: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(pool, "rehearse", None)
    assert common.run(train_sft.main, [config, *SHAPES]) == 0
    assert capsys.readouterr().out == ""


def test_a_step_is_rehearsed_and_nothing_is_written(config: str, capsys) -> None:
    small = (
        "model.preset=null",
        "model.architecture={num_hidden_layers: 2, hidden_size: 64, intermediate_size: 96, num_attention_heads: 4,"
        " num_key_value_heads: 2, vocab_size: 512}",
        "data.max_prompt_tokens=16",
        "rollout.max_new_tokens=48",
        "training.tokens_per_micro_batch=80",
        "parallel.pipeline=2",
        "parallel.tensor=2",
    )
    before = sorted(Path(config).parent.iterdir())
    try:
        shim.build()
    except common.LwzError as error:
        pytest.skip(str(error))
    assert common.run(train_grpo.main, [config, *SHAPES, "--gpus", "8", "--gpu", "h200-141g", *small]) == 0
    out = capsys.readouterr().out
    assert "dry run (shapes) of grpo: 8 GPUs, tensor 2 × context 1 × pipeline 2 × data 2" in out
    assert "stage 1 of 2 (rank 0)" in out and "stage 2 of 2 (rank 4)" in out
    assert "fits: at most 0.0 of 131.3 GiB (NVIDIA H200 SXM5 141 GB)" in out
    assert sorted(Path(config).parent.iterdir()) == before


def test_a_run_without_it_imports_no_planner() -> None:
    code = "import sys, megatron_lwz.cli.dry_run; sys.exit(any('planner' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables()).returncode == 0
