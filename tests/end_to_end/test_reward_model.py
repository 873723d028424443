"""The reward model's stage for real: pairs made, trained, exported, and served by a GRPO run that it scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_lwz.cli import common, train_reward_model
from megatron_lwz.config import load_config
from megatron_lwz.data.preferences.rendering import load_rendering
from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from tests.support import warm
from tests.support.files import contents
from tests.support.grpo_runs import ROOT, command, train, variables, write_example
from tests.support.stages import run as run_stage
from tools import make_preference_pairs, make_tiny_data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A GRPO example whose byte tokenizer a reward model was trained with, on pairs made from a few texts."""
    folder = tmp_path_factory.mktemp("reward_model")
    config = write_example(folder)
    rows = make_tiny_data.good_texts(40, seed=3)
    (folder / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "--documents",
        folder / "good.jsonl",
        "--out",
        folder / "pairs",
        "--per-document",
        "2",
        "--held-out",
        "0.3",
    ]
    assert common.run(make_preference_pairs.main, [str(argument) for argument in arguments]) == 0
    tree = yaml.safe_load(config.read_text())
    stage = {
        "run": {"dir": str(folder / "reward_model")},
        "model": tree["model"],
        "training": {
            "precision": "fp32", "sequences_per_step": 8, "sequence_length": 1200, "tokens_per_micro_batch": 4800, "steps": 6,
        },
        "reward_model": {
            "pairs": [str(folder / "pairs" / "train.jsonl")], "held_out": [str(folder / "pairs" / "held_out.jsonl")],
        },
        "optimizer": {"lr": 1e-3},
        "checkpoint": {"interval": 3},
        "evaluation": {"interval": 3},
    }  # fmt: skip
    (folder / "reward_model.yaml").write_text(yaml.safe_dump(stage))
    done = run_stage("train_reward_model", str(folder / "reward_model.yaml"), ranks=2)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return {"folder": folder, "config": config, "said": done.stdout}


def test_the_tool_reports_what_it_made(run: dict[str, Any]) -> None:
    report = json.loads((run["folder"] / "pairs" / "report.json").read_text())
    assert report["on_both_sides"] == {"prompts": 0, "texts": 0} and report["counts"]["documents read"] == 40
    assert report["train"]["pairs"] > 30 and set(report["train"]["languages"]) == {"en", "zh"}
    assert report["train"]["length_only_accuracy"] < 0.65


def test_the_run_folder_tells_how_held_out_pairs_were_scored(run: dict[str, Any]) -> None:
    root = run["folder"] / "reward_model"
    rows, evaluations = read_metrics(root / "metrics.jsonl"), read_metrics(root / "evaluation.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and [row["step"] for row in evaluations] == [0, 3, 6]
    assert {"loss", "accuracy", "difference", "ranking_loss", "grad_norm", "tokens_per_second"} <= set(rows[0])
    scored = [json.loads(line) for line in (root / "held_out.jsonl").read_text().splitlines()]
    summary = json.loads((root / "held_out.json").read_text())
    wins = [(row["chosen"] > row["rejected"]) + 0.5 * (row["chosen"] == row["rejected"]) for row in scored]
    assert (
        summary["accuracy"]["value"] == pytest.approx(sum(wins) / len(wins)) == evaluations[-1]["validation/accuracy"]
    )
    assert set(summary["by_kind"]) == {row["kind"] for row in scored} and 0.5 <= summary["length_baseline"] < 0.75
    assert sum(found["pairs"] for found in summary["calibration"]) == len(scored)
    page = (root / "report.html").read_text()
    assert "<html" in page and "Calibration" in page and "Accuracy by kind" in page and "://" not in page
    assert "held-out pairs" in run["said"] and "length alone" in run["said"]


def test_the_export_scores_like_the_stage(run: dict[str, Any]) -> None:
    from transformers import AutoModelForSequenceClassification

    from megatron_lwz.data.preferences.formats import read_pairs
    from megatron_lwz.data.preferences.rendering import split_reply
    from megatron_lwz.data.tokenizer import Tokenizer

    root, hf = run["folder"] / "reward_model", run["folder"] / "reward_model" / "hf"
    model = AutoModelForSequenceClassification.from_pretrained(hf).eval()
    rendering, tokenizer = load_rendering(hf), Tokenizer(hf)
    scored = [json.loads(line) for line in (root / "held_out.jsonl").read_text().splitlines()]
    pairs = {
        pair.id: pair for pair in read_pairs(run["folder"] / "pairs" / "held_out.jsonl") if not isinstance(pair, str)
    }
    assert rendering is not None and scored
    with torch.no_grad():
        for row in scored[:5]:
            text = rendering(pairs[row["id"]].prompt, split_reply(pairs[row["id"]].chosen))
            theirs = float(model(torch.tensor([tokenizer.encode(text)])).logits[0, 0])
            assert row["chosen"] == pytest.approx(theirs, abs=1e-4)


def test_a_grpo_run_starts_its_reward_model_and_is_scored_by_it(run: dict[str, Any], tmp_path: Path) -> None:
    hf = run["folder"] / "reward_model" / "hf"
    train(run["config"], f"run.dir={tmp_path}", "training.steps=2", f"reward.writing.hf={hf}", ranks=2)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert all("reward/writing" in row and row["reward_masked/writing"] <= 1 for row in rows)
    with JournalReader(tmp_path / "journal.sqlite") as journal:
        scores = [scores["writing"] for group in journal.groups() for scores in group.scores]
    assert len(scores) >= 16 and all(score.version.startswith("writing") for score in scores)
    saved = load_config(tmp_path).reward.writing
    assert saved.url is None and saved.hf == str(hf), "the started server's address is the run's own affair"


def test_the_real_command_line_trains(run: dict[str, Any], tmp_path: Path) -> None:
    options = (str(run["folder"] / "reward_model.yaml"), f"run.dir={tmp_path}", "training.steps=1")
    done = run_stage("train_reward_model", *options, real=True)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_a_resumed_run_ends_with_the_same_weights(run: dict[str, Any], tmp_path: Path) -> None:
    from megatron_lwz.models.hf import checksum_folder

    for steps in (3, 6):
        arguments = [str(run["folder"] / "reward_model.yaml"), f"run.dir={tmp_path}", f"training.steps={steps}"]
        assert common.run(train_reward_model.main, [*arguments, "optimizer.schedule=constant"]) == 0
    assert common.run(
        train_reward_model.main, [arguments[0], f"run.dir={tmp_path}/whole", "optimizer.schedule=constant"]
    ) == 0  # fmt: skip
    assert checksum_folder(tmp_path / "hf") == checksum_folder(tmp_path / "whole" / "hf")
    before = contents(tmp_path / "whole")
    other = ["model.architecture.hidden_size=56"]
    for steps, overrides, status in (6, [], 0), (6, other, 2), (7, other, 2):  # nothing to do; another model
        whole = [f"run.dir={tmp_path}/whole", f"training.steps={steps}", "optimizer.schedule=constant"]
        assert common.run(train_reward_model.main, [arguments[0], *whole, *overrides]) == status
        assert contents(tmp_path / "whole") == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward_model.pairs=[]"], "config key 'reward_model.pairs'"),
        (["reward_model.pairs=[nowhere.jsonl]"], "no such file"),
        (["training.tokens_per_micro_batch=1200"], "must hold a pair of texts"),
        (["training.sequence_length=8"], "longer than 8 tokens"),
        (
            ["reward_model.pairs=[TMP/tied.jsonl]"],
            "tied.jsonl: none of 2 rows can be used: 1 tied, 1 with equal replies",
        ),
        (["reward_model.held_out=[TMP/tied.jsonl]"], "tied.jsonl: none of 2 rows can be used"),
        (
            ["reward_model.pairs=[TMP/nan.jsonl]"],
            "nan.jsonl, line 1: 'margin' must be a finite number in fp32, got nan",
        ),
        (["reward_model.margin=1.0e+39"], "config key 'reward_model.margin' = 1e+39"),
    ],
)
def test_mistakes_are_one_line(
    run: dict[str, Any], tmp_path: Path, capsys: Any, overrides: list[str], words: str
) -> None:
    tied = {"prompt": "Q", "response_a": "a", "response_b": "b", "winner": "tie"}
    equal = {"prompt": "Q", "chosen": "a", "rejected": "a"}
    (tmp_path / "tied.jsonl").write_text(json.dumps(tied) + "\n" + json.dumps(equal) + "\n")
    (tmp_path / "nan.jsonl").write_text(json.dumps(equal | {"rejected": "b", "margin": float("nan")}) + "\n")
    overrides = [text.replace("TMP", str(tmp_path)) for text in overrides]
    arguments = [str(run["folder"] / "reward_model.yaml"), f"run.dir={tmp_path}", *overrides]
    assert common.run(train_reward_model.main, arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert words in line


def test_a_grpo_run_whose_reward_model_does_not_start_says_why(run: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = [f"run.dir={tmp_path}", f"reward.writing.hf={tmp_path}/empty"]
    done = warm.run(command(run["config"], *arguments), cwd=ROOT, env=variables(), timeout=120)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "no config.json in this folder" in line


@pytest.mark.long
def test_the_demo_s_reward_model_tells_spoilt_texts_apart(tmp_path: Path) -> None:
    """As in examples/tiny_cpu/run.sh: pretrained trunk, generated pairs of matched length, held-out source documents."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m"]
    stages = [
        [sys.executable, "tools/make_tiny_data.py", "--out", f"{tmp_path}/data"],
        [*torchrun, "megatron_lwz.cli.pretrain", "examples/tiny_cpu/pretrain.yaml", f"run.dir={tmp_path}/pretrain",
         f"model.tokenizer={tmp_path}/data", f"data.corpus=[{tmp_path}/data/corpus.jsonl]"],
        [sys.executable, "tools/make_preference_pairs.py", "--documents", f"{tmp_path}/data/good.jsonl",
         "--out", f"{tmp_path}/pairs", "--held-out", "0.06"],
        [*torchrun, "megatron_lwz.cli.train_reward_model", "examples/tiny_cpu/reward_model.yaml",
         f"run.dir={tmp_path}/reward_model", f"model.hf={tmp_path}/pretrain/hf",
         f"reward_model.pairs=[{tmp_path}/pairs/train.jsonl]", f"reward_model.held_out=[{tmp_path}/pairs/held_out.jsonl]"],
    ]  # fmt: skip
    for stage in stages:
        done = subprocess.run(stage, cwd=ROOT, env=variables(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    summary = json.loads((tmp_path / "reward_model" / "held_out.json").read_text())
    assert summary["accuracy"]["value"] >= 0.9 and summary["length_baseline"] < 0.6
    assert len(summary["by_kind"]) == 6 and min(share["value"] for share in summary["by_kind"].values()) > 0.6
