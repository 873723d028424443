"""The train_sft command: learns the responses, writes its run folder, resumes bit for bit, and names what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from megatron_lwz.distributed import environment
from megatron_lwz.metrics import read_metrics

ROOT = Path(__file__).parents[2]
WORDS = [f"w{index}" for index in range(40)]
MARKS = ["<|user|>", "<|assistant|>", ":", "<answer>", "</answer>"]


def command(*arguments: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [
        *torchrun,
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
        "-m",
        "megatron_lwz.cli.train_sft",
        *arguments,
    ]


def variables() -> dict[str, str]:
    return environment.child_environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=variables(), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose rows are easy: asked for word i, the reply counts on from it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("sft")
    vocabulary = {word: index for index, word in enumerate(["<|endoftext|>", *MARKS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>", *MARKS])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    rows = []
    for start in range(24):
        asked, reply = WORDS[start], " ".join(WORDS[start + 1 : start + 4 + start % 7])
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        rows.append(({"messages": turns}, {"prompt": asked, "response": reply})[start % 2])
    rows.append({"prompt": "w1", "response": " ".join(WORDS * 3)})  # longer than a sequence: left out
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[3:6]))
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {
            "architecture": {
                "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
                "num_key_value_heads": 2, "vocab_size": 46, "tie_word_embeddings": True,
            },
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
    done = launch(str(config), f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "24 conversations, 1 left out, 0 truncated" in done.stdout
    return folder


def rows_of(folder: Path) -> list[dict[str, float]]:
    timed = ("seconds", "tokens_per_second", "mfu")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(folder / "metrics.jsonl")]


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


def test_a_killed_run_repeats_an_undisturbed_one_bit_for_bit(config: Path, whole: Path) -> None:
    folder = config.parent / "killed"
    arguments = (str(config), f"run.dir={folder}")
    group = subprocess.Popen(
        command(*arguments), cwd=ROOT, env=variables(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    metrics, end = folder / "metrics.jsonl", time.monotonic() + 240
    while group.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 6):
        assert time.monotonic() < end, "no step 7"
        time.sleep(0.01)
    kill_tree(group.pid)
    group.wait()
    done = launch(*arguments, "run.resume=must")
    assert done.returncode == 0, done.stderr
    assert rows_of(folder) == rows_of(whole)
    assert read_metrics(folder / "evaluation.jsonl") == read_metrics(whole / "evaluation.jsonl")


def kill_tree(pid: int) -> None:
    """SIGKILL to torchrun and its workers, which have sessions of their own."""
    try:
        parent = psutil.Process(pid)
        for process in (*parent.children(recursive=True), parent):
            process.kill()
    except psutil.NoSuchProcess:
        pass  # it had ended


def test_what_is_wrong_is_said_in_one_line(config: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.jsonl").write_text('{"prompt": "w1", "response": "w2"}\n{"question": "w1", "answer": "w2"}\n')
    cases = {
        "data.instructions=[]": "config key 'data.instructions' = []: ",
        f"data.instructions=[{tmp_path}/keys.jsonl]": "keys.jsonl, line 2: unknown format: the row has the keys question, answer",
        "training.tokens_per_micro_batch=10": "config key 'training.tokens_per_micro_batch' = 10",
        "training.ramp_from=2": "config key 'training.ramp_steps' = 0",
        "sft.turns=first": "config key 'sft.turns' = 'first'",
    }
    program = (
        "import json, sys; from megatron_lwz.cli import common, train_sft\n"
        "for argv in json.loads(sys.argv[1]): print(common.run(train_sft.main, argv))"
    )
    commands = [[str(config), f"run.dir={tmp_path}/new", *overrides.split()] for overrides in cases]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, timeout=180,
        env=variables(), check=False,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["2"] * len(cases), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == len(cases)
    for message, line in zip(cases.values(), errors, strict=True):
        assert message in line
