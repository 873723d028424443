"""The pretrain command: learns, writes its run folder, resumes bit for bit, and says what is wrong in one line."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_lwz.cli import common, evaluate_export, pretrain
from megatron_lwz.metrics import read_metrics
from megatron_lwz.models.hf import checksum_folder
from tests.support.files import contents, stamps
from tests.support.stages import ROOT, TINY, assert_one_line_each, kill, kill_while_saving, rows_of, run, start
from tests.support.tiny_qwen2 import write_word_tokenizer
from tests.support.waiting import wait_for

WORDS = [f"w{index}" for index in range(40)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose corpus is easy: word i is always followed by word i + 1."""
    folder = tmp_path_factory.mktemp("pretrain")
    vocabulary = write_word_tokenizer(folder, WORDS)
    rows = [{"text": " ".join(WORDS[start : start + 4 + start % 9])} for start in range(25)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {
            "architecture": TINY | {"vocab_size": vocabulary, "tie_word_embeddings": True},
            "tokenizer": str(folder),
            "vocab_padding": 8,
        },
        "training": {
            "steps": 8, "sequences_per_step": 4, "sequence_length": 24, "tokens_per_micro_batch": 48, "precision": "fp32",
        },
        "data": {"corpus": [str(folder / "corpus.jsonl")]},
        "optimizer": {"lr": 0.01},
        "checkpoint": {"interval": 3},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """An undisturbed run on two tensor-parallel ranks, by the real command line."""
    folder = config.parent / "whole"
    done = run("pretrain", str(config), f"run.dir={folder}", "parallel.tensor=2", ranks=2, real=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_loss_falls_and_the_run_folder_is_complete(whole: Path) -> None:
    rows = rows_of(whole)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 8 and summary["last"]["loss"] < summary["first"]["loss"]
    assert sorted(path.name for path in (whole / "checkpoints").glob("step_*")) == ["step_00000006", "step_00000008"]
    assert (whole / "checkpoints" / "latest").read_text() == "step_00000008"
    assert not list(whole.rglob("*.tmp"))
    assert yaml.safe_load((whole / "config.yaml").read_text())["parallel"]["tensor"] == 2


def test_the_export_loads_in_transformers_and_continues_the_corpus(whole: Path) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    from megatron_lwz.data.tokenizer import Tokenizer

    model = Qwen2ForCausalLM.from_pretrained(whole / "hf")
    tokens = torch.tensor([Tokenizer(whole / "hf").encode("w3 w4 w5 w6 w7")])
    assert model(tokens, labels=tokens).loss.item() < rows_of(whole)[0]["loss"] - 0.5


def test_a_run_that_is_killed_while_it_saves_resumes_bit_for_bit_from_the_checkpoint_before(
    config: Path, whole: Path
) -> None:
    folder = config.parent / "killed"
    arguments = (str(config), f"run.dir={folder}", "parallel.tensor=2", "checkpoint.interval=1")
    half_written = kill_while_saving(start("pretrain", *arguments, ranks=2), folder / "checkpoints", after=2)
    latest = (folder / "checkpoints" / "latest").read_text()
    assert latest < half_written.name[1:-4] and (folder / "checkpoints" / latest / "metadata.json").is_file()
    done = run("pretrain", *arguments, "run.resume=must", ranks=2)
    assert done.returncode == 0, done.stderr
    assert rows_of(folder) == rows_of(whole)
    assert not list(folder.rglob("*.tmp")), "what the kill left is gone"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "already finished at step 8: raise training.steps (8) to go on"),
        (["data.corpus={folder}/broken.jsonl", "run.allow_change=data.corpus"], "broken.jsonl, line 2"),
        (["model.architecture.hidden_size=48"], "allow it with run.allow_change=model.architecture.hidden_size"),
        (
            ["model.architecture.hidden_size=48", "data.corpus={folder}/other.jsonl", "run.allow_change=model,data"],
            "hidden_size is 32 there, 48 in this config",
        ),
        (["run.seed=7"], "config key 'run.seed' = 7: the run in"),
    ],
)
def test_a_start_that_fails_or_has_nothing_to_do_changes_no_byte(
    config: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w1\n')
    (tmp_path / "other.jsonl").write_text('{"text": "w1 w2 w3 w4"}\n')
    before = contents(whole)
    more = ["training.steps=9", *(given.format(folder=tmp_path) for given in overrides)] if overrides else []
    status = common.run(pretrain.main, [str(config), f"run.dir={whole}", *more])
    out, error = capsys.readouterr()
    assert contents(whole) == before
    assert status == (2 if overrides else 0) and said in (error if overrides else out)


def test_a_finished_run_is_exported_after_a_start_that_failed(config: Path, whole: Path, tmp_path: Path) -> None:
    wrong = ("training.steps=9", "model.architecture.hidden_size=48", "run.allow_change=model.architecture")
    assert common.run(pretrain.main, [str(config), f"run.dir={whole}", *wrong]) == 2
    assert common.run(evaluate_export.main, [str(whole), str(tmp_path / "hf")]) == 0
    assert checksum_folder(tmp_path / "hf") == checksum_folder(whole / "hf")


def test_a_second_start_beside_a_living_run_changes_nothing_and_a_killed_one_needs_no_hand(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = [str(config), f"run.dir={folder}", "checkpoint.interval=1"]
    first = start("pretrain", *arguments, "training.steps=100000")
    wait_for(lambda: (folder / "checkpoints" / "latest").exists(), seconds=240, process=first)
    os.kill(first.pid, signal.SIGSTOP)  # it lives, but writes nothing while its folder is compared
    before = stamps(folder)
    assert common.run(pretrain.main, [*arguments, "run.seed=7", "optimizer.lr=0.5"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"'run.dir' = '{folder}': process {first.pid} on {platform.node()} writes this run" in error
    assert stamps(folder) == before
    kill(first)
    done = int((folder / "checkpoints" / "latest").read_text()[5:])
    assert common.run(pretrain.main, [*arguments, f"training.steps={done + 1}", "optimizer.lr=0.02"]) == 0
    changed = ["optimizer.lr: 0.01 -> 0.02", f"training.steps: 100000 -> {done + 1}"]
    said = capsys.readouterr().out
    assert all(f"changed since the last start: {line}\n" in said for line in changed)
    rows = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    assert [(row["attempt"], row["stage"], row["step"]) for row in rows] == [(0, "pretrain", 0), (1, "pretrain", done)]
    assert rows[1]["changed"] == {"optimizer.lr": [0.01, 0.02], "training.steps": [100000, done + 1]}
    assert read_metrics(folder / "metrics.jsonl")[-1]["step"] == done + 1
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_prepared_corpus_is_trained_and_its_sources_are_validated(config: Path, tmp_path: Path) -> None:
    spec = {"tokenizer": str(config.parent), "validation": 0.2, "duplicates": {"exact": False, "near": False}}
    sources = [
        {"name": name, "paths": [f"{name}.jsonl"], "weight": weight} for name, weight in (("a", 0.7), ("b", 0.3))
    ]
    for source, offset in zip(sources, (0, 20), strict=True):
        texts = [" ".join(WORDS[offset + i % 9 : offset + 12 + i % 7]) + f" w{i}" for i in range(30)]
        (tmp_path / f"{source['name']}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec | {"sources": sources}))
    prepare = [sys.executable, "tools/prepare_corpus.py", f"{tmp_path}/spec.yaml", "--out", f"{tmp_path}/prepared"]
    subprocess.run([*prepare, "--workers", "1"], cwd=ROOT, check=True, timeout=120, capture_output=True)
    corpus = f"data.corpus=[{tmp_path}/prepared/manifest.json]"
    done = run("pretrain", str(config), f"run.dir={tmp_path}/run", corpus, "training.steps=6", "evaluation.interval=4")
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "run/evaluation.jsonl")
    assert [row["step"] for row in rows] == [0, 4, 6]
    for source in ("validation/a", "validation/b"):
        assert rows[-1][source] < 0.95 * rows[0][source]


def test_what_is_wrong_is_said_in_one_line(config: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w1\n')
    cases = {
        "run.resume=must": "config key 'run.resume' = 'must': no checkpoint under",
        f"run.resume=never run.dir={whole}": "config key 'run.resume' = 'never': ",
        f"data.corpus=[{tmp_path}/broken.jsonl]": "broken.jsonl, line 2: not valid JSON",
        "training.tokens_per_micro_batch=10": "config key 'training.tokens_per_micro_batch' = 10",
        f"checkpoint.load={tmp_path}/nowhere": "nowhere: no checkpoint here",
        "parallel.tensor=2": "config key 'parallel'",
    }
    assert_one_line_each("pretrain", config, cases, tmp_path / "new")
    assert not (tmp_path / "new").exists(), "a first start that fails leaves nothing"
