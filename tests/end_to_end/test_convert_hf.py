"""tools/convert_hf.py from the outside: a Qwen2 by transformers goes in, is verified, scored, and comes back bit by bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

from megatron_lwz.cli import common
from megatron_lwz.config import load_config
from megatron_lwz.distributed import environment, launch
from megatron_lwz.training.token_logprobs import write_logprobs
from tests.support.tiny_qwen2 import tiny_qwen2
from tools import convert_hf

ROOT = Path(__file__).parents[2]


def save_model(folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.float32, seed: int = 1) -> Path:
    model = tiny_qwen2(
        seed=seed, vocab_size=203, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        tie_word_embeddings=tied,
    ).to(dtype)  # fmt: skip
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"marker": 1}')
    return folder


def convert(*arguments: object) -> int:
    return common.run(convert_hf.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("convert")
    hf = save_model(root / "hf")
    assert convert("import", "--hf", hf, "--out", root / "checkpoint") == 0
    return hf, root / "checkpoint"


def test_verify_accepts_the_same_model_and_says_the_difference(converted, capsys: pytest.CaptureFixture) -> None:
    hf, checkpoint = converted
    assert convert("verify", "--hf", hf, "--checkpoint", checkpoint) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if "difference" in line)
    assert float(said.split("=")[1].split()[0]) <= 1e-4


def test_verify_refuses_another_model(converted, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = save_model(tmp_path / "other", seed=2)
    assert convert("verify", "--hf", other, "--checkpoint", converted[1]) != 0
    assert "log-probs differ by" in capsys.readouterr().err


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_gives_back_every_bit_and_file(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    hf = save_model(tmp_path / "hf", tied=tied, dtype=dtype)
    assert convert("import", "--hf", hf, "--out", tmp_path / "checkpoint") == 0
    assert convert("export", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "back") == 0
    before, after = load_file(hf / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(after[name].dtype == dtype and torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (tmp_path / "back" / "tokenizer.json").read_text() == '{"marker": 1}'
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (hf, tmp_path / "back"))
    assert all(new[key] == value for key, value in old.items())


def test_export_can_change_the_type(converted, tmp_path: Path) -> None:
    hf, checkpoint = converted
    assert convert("export", "--checkpoint", checkpoint, "--out", tmp_path / "half", "--dtype", "bf16") == 0
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(half[n], t.bfloat16()) for n, t in load_file(hf / "model.safetensors").items())
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_stages_accept_the_checkpoint_folder_as_config(converted, tmp_path: Path) -> None:
    hf, checkpoint = converted
    config = load_config(checkpoint)
    assert config.tokenizer_dir() == checkpoint and config.checkpoint.load == str(checkpoint)
    tokens = torch.randint(203, (40,), generator=torch.Generator().manual_seed(1))
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "a", "tokens": tokens.tolist(), "prompt_length": 10}) + "\n")
    try:
        write_logprobs(config, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    finally:
        launch.shutdown()
    row = json.loads((tmp_path / "out.jsonl").read_text())
    with torch.no_grad():
        logits = Qwen2ForCausalLM.from_pretrained(hf)(tokens[None]).logits[0, 9:-1]
    expected = logits.log_softmax(-1).gather(-1, tokens[10:, None])[:, 0]
    assert torch.allclose(torch.tensor(row["logprobs"]), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import", "--hf", "nowhere", "--out", "out"], "config key 'model.hf'"),
        (["import", "--hf", "{hf}", "--out", "{hf}"], "name another folder"),
        (["import", "--hf", "{hf}", "--out", "out", "--tensor", "4"], "must divide the model's 6 attention heads"),
        (["export", "--checkpoint", "{hf}", "--out", "out"], "no config.yaml here"),
        (["verify", "--hf", "{hf}"], "required: --checkpoint"),
    ],
)
def test_mistakes_are_one_line(converted, tmp_path: Path, monkeypatch, capsys, arguments, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert(*[a.format(hf=converted[0]) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "out").exists()


def test_plain_python_runs_it(converted, tmp_path: Path) -> None:
    hf, _ = converted
    (tmp_path / "hf").mkdir()
    for file in hf.iterdir():
        (tmp_path / "hf" / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "hf" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    command = [
        sys.executable,
        "tools/convert_hf.py",
        "import",
        "--hf",
        str(tmp_path / "hf"),
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment.child_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "file model.safetensors is damaged or truncated" in done.stderr.splitlines()[-1]
