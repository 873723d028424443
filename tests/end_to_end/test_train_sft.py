"""The train_sft command: learns the responses, writes its run folder, resumes bit for bit, and names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_lwz.metrics import read_metrics
from tests.support.stages import TINY, assert_one_line_each, kill, rows_of, run, start
from tests.support.tiny_qwen2 import write_word_tokenizer
from tests.support.traces import read_trace
from tests.support.waiting import wait_for

WORDS = [f"w{index}" for index in range(40)]
MARKS = ["<|user|>", "<|assistant|>", ":", "<answer>", "</answer>"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose rows are easy: asked for word i, the reply counts on from it."""
    folder = tmp_path_factory.mktemp("sft")
    vocabulary = write_word_tokenizer(folder, WORDS, MARKS)
    rows = []
    for at in range(24):
        asked, reply = WORDS[at], " ".join(WORDS[at + 1 : at + 4 + at % 7])
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        rows.append(({"messages": turns}, {"prompt": asked, "response": reply})[at % 2])
    rows.append({"prompt": "w1", "response": " ".join(WORDS * 3)})  # longer than a sequence: left out
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[3:6]))
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {
            "architecture": TINY | {"vocab_size": vocabulary, "tie_word_embeddings": True},
            "tokenizer": str(folder),
            "vocab_padding": 8,
        },
        "training": {
            "sequences_per_step": 8, "sequence_length": 40, "tokens_per_micro_batch": 64, "precision": "fp32",
            "peak_flops": 1e9,
        },
        "sft": {"epochs": 4},
        "data": {
            "instructions": [str(folder / "rows.jsonl")], "template": "bare",
            "validation": {"held_out": [str(folder / "held_out.jsonl")]},
        },
        "optimizer": {"lr": 0.01, "warmup_fraction": 0.1},
        "checkpoint": {"interval": 5},
        "evaluation": {"interval": 6},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """An undisturbed run on two data-parallel ranks."""
    folder = config.parent / "whole"
    done = run("train_sft", str(config), f"run.dir={folder}", "grpo.group_size=4", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stage sft does not read grpo.group_size: what is set there changes nothing") == 1
    assert (
        "24 conversations, 1 left out (1 longer than 40 tokens (training.sequence_length)), 0 truncated" in done.stdout
    )
    return folder


def test_the_loss_falls_over_the_epochs_and_the_run_folder_is_complete(whole: Path) -> None:
    rows = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13)), "4 epochs of 24 rows in steps of 8"
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[0]["lr"] == pytest.approx(0.005), "a tenth of 12 steps is 2"
    assert all(row["sequences"] == 8 and 0 < row["mfu"] < 1 and row["skipped"] == 0 for row in rows)
    held_out = read_metrics(whole / "evaluation.jsonl")
    assert [row["step"] for row in held_out] == [0, 6, 12]
    assert held_out[-1]["validation/held_out"] < 0.7 * held_out[0]["validation/held_out"]
    assert yaml.safe_load((whole / "config.yaml").read_text())["training"]["steps"] == 12


def test_the_export_writes_the_response_and_ends_it(whole: Path) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    from megatron_lwz.data.tokenizer import Tokenizer

    tokenizer, model = Tokenizer(whole / "hf"), Qwen2ForCausalLM.from_pretrained(whole / "hf")
    prompt = tokenizer.encode("<|user|> : w7 <|assistant|> :")
    reply = [*tokenizer.encode("<answer> w8 w9 w10 </answer>"), 0]
    tokens = torch.tensor([prompt + reply])
    labels = tokens.clone()
    labels[:, : len(prompt)] = -100
    assert model(tokens, labels=labels).loss.item() < rows_of(whole)[0]["loss"] - 0.5


def test_the_real_command_line_trains(config: Path, tmp_path: Path) -> None:
    done = run("train_sft", str(config), f"run.dir={tmp_path}", "sft.epochs=1", "--profile", "steps=2", real=True)
    assert done.returncode == 0, done.stderr
    trace = read_trace(tmp_path / "profile" / "steps_2-2.json.gz")
    assert [phase["name"] for phase in trace.spans("rank 0: trainer", "phases")] == ["data", "update"]
    assert "aten::mm" in {op["name"] for op in trace.spans("rank 0: operators")}
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.long  # the loop is pretraining's, whose kills are in make test
def test_a_killed_run_repeats_an_undisturbed_one_bit_for_bit(config: Path, whole: Path) -> None:
    folder = config.parent / "killed"
    arguments = (str(config), f"run.dir={folder}")
    process = start("train_sft", *arguments, ranks=2)
    metrics = folder / "metrics.jsonl"
    wait_for(
        lambda: process.poll() is not None or (metrics.exists() and len(metrics.read_text().splitlines()) > 6),
        seconds=240,
        what="step 7",
    )
    kill(process)
    done = run("train_sft", *arguments, "run.resume=must", ranks=2)
    assert done.returncode == 0, done.stderr
    assert rows_of(folder) == rows_of(whole)
    assert read_metrics(folder / "evaluation.jsonl") == read_metrics(whole / "evaluation.jsonl")


def test_what_is_wrong_is_said_in_one_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.jsonl").write_text('{"prompt": "w1", "response": "w2"}\n{"ask": "w1", "reply": "w2"}\n')
    (tmp_path / "cut.jsonl").write_text('{"prompt": "w1", "response": "<think> w2"}\n')
    cases = {
        "data.instructions=[]": "config key 'data.instructions' = []: ",
        f"data.instructions=[{tmp_path}/keys.jsonl]": "keys.jsonl, line 2: no request found: the row has the keys ask, reply",
        f"data.instructions=[{tmp_path}/cut.jsonl]": "cut.jsonl: none of 1 rows can be used: 1 with thinking that is cut off",
        "training.tokens_per_micro_batch=10": "config key 'training.tokens_per_micro_batch' = 10",
        "training.ramp_from=2": "config key 'training.ramp_steps' = 0",
        "sft.turns=first": "config key 'sft.turns' = 'first'",
    }
    assert_one_line_each("train_sft", config, cases, tmp_path / "new")
