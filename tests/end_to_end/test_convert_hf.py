"""tools/convert_hf.py from the outside: a Qwen2 by transformers goes in, is verified, scored, and comes back bit by bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM

from megatron_lwz.cli import common
from megatron_lwz.config import hf_rope, load_config
from megatron_lwz.data.text.sample import ENGLISH
from megatron_lwz.distributed import environment, launch
from megatron_lwz.models.hf import name_map
from megatron_lwz.training.token_logprobs import write_logprobs
from tests.support.tiny_qwen2 import tiny_qwen2, write_word_tokenizer
from tools import convert_hf

ROOT = Path(__file__).parents[2]


def save_model(folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.float32, seed: int = 1) -> Path:
    model = tiny_qwen2(
        seed=seed, vocab_size=203, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        tie_word_embeddings=tied,
    ).to(dtype)  # fmt: skip
    model.save_pretrained(folder)
    write_word_tokenizer(folder, ["<unknown>", *ENGLISH.split()[:150]])
    return folder


def convert(*arguments: object) -> int:
    return common.run(convert_hf.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("convert")
    hf = save_model(root / "hf")
    assert convert("import", "--hf", hf, "--out", root / "checkpoint") == 0
    return hf, root / "checkpoint"


def changed_copy(hf: Path, folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """The folder with other numbers in config.json or other weights."""
    shutil.copytree(hf, folder)
    config, tensors = json.loads((hf / "config.json").read_text()), load_file(hf / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def one_percent(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][7, 5] *= 1.01


def swapped_heads(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name in ("weight", "bias"):
        heads = tensors[f"model.layers.0.self_attn.q_proj.{name}"].unflatten(0, (6, 8))
        heads[[0, 1]] = heads[[1, 0]]


def another_theta(config: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    config["rope_parameters"]["rope_theta"] = 10_000.0


def another_model(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor.add_(0.1)


def test_verify_accepts_the_same_model_and_says_all_errors(converted, capsys: pytest.CaptureFixture) -> None:
    hf, checkpoint = converted
    assert convert("verify", "--hf", hf, "--checkpoint", checkpoint) == 0
    said = capsys.readouterr().out
    values = sum(tensor.numel() for tensor in load_file(hf / "model.safetensors").values())
    assert (
        f"weights: all 27 tensors are equal ({values:,} values)" in said and "function: the log-probs are those" in said
    )
    rows = [line.replace("│", " ").split() for line in said.splitlines() if "tokens" in line and "│" in line]
    assert [row[:-5] for row in rows] == [["random", "tokens"], ["tokens", "of", "text"]]
    assert [int(row[-5]) for row in rows] == [4 * 127, len(ENGLISH.split()) - 1 + 1]
    errors = [[float(text) for text in row[-4:]] for row in rows]
    assert all(0 < mean < largest <= 1e-4 for ours in errors for largest, mean in (ours[:2], ours[2:]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (one_percent, "1 of 27 tensors differ; 1 of the 3840 values of model.layers.1.mlp.up_proj.weight differ, most at [7, 5]"),
        (swapped_heads, "2 of 27 tensors differ; 7"),
        (another_theta, "rope_theta is 1000000.0 in its config.yaml, 10000.0 in config.json"),
        (another_model, "27 of 27 tensors differ"),
    ],
)  # fmt: skip
def test_verify_refuses_another_model(converted, tmp_path: Path, capsys, change, words: str) -> None:
    hf, checkpoint = converted
    other = changed_copy(hf, tmp_path / "other", change)
    assert convert("verify", "--hf", other, "--checkpoint", checkpoint) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and f"is not the model in {other}" in line and words in line


def test_verify_compares_in_the_narrower_of_two_types(converted, tmp_path: Path) -> None:
    hf, _ = converted
    half = changed_copy(hf, tmp_path / "half", lambda config, tensors: tensors.update(
        {name: tensor.bfloat16() for name, tensor in tensors.items()}
    ))  # fmt: skip
    assert convert("import", "--hf", half, "--out", tmp_path / "checkpoint") == 0
    assert load_config(tmp_path / "checkpoint").training.precision == "bf16"
    assert convert("verify", "--hf", half, "--checkpoint", tmp_path / "checkpoint") == 0
    assert convert("verify", "--hf", half, "--checkpoint", converted[1], "--tolerance", 9) == 0
    wrong = changed_copy(half, tmp_path / "wrong", one_percent)
    assert convert("verify", "--hf", wrong, "--checkpoint", tmp_path / "checkpoint") == 2


def test_verify_sees_what_import_and_export_get_wrong_alike(
    converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Then the weights come back equal, and only the function shows it."""
    view = name_map._view

    def gate_for_up(parameter: torch.Tensor, part: name_map.Part, arch: Any) -> torch.Tensor:
        wrong = {name_map.Part.GATE: name_map.Part.UP, name_map.Part.UP: name_map.Part.GATE}
        return view(parameter, wrong.get(part, part), arch)

    monkeypatch.setattr(name_map, "_view", gate_for_up)
    assert convert("import", "--hf", converted[0], "--out", tmp_path / "wrong") == 0
    assert convert("verify", "--hf", converted[0], "--checkpoint", tmp_path / "wrong") == 2
    out, err = capsys.readouterr()
    assert "weights: all 27 tensors are equal" in out
    assert "log-probs of random tokens are off by" in err and "transformers' own by" in err


def test_verify_sees_a_config_that_transformers_reads_differently(
    converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    other = changed_copy(converted[0], tmp_path / "other", lambda config, _: config.pop("rope_parameters"))
    monkeypatch.setattr(hf_rope, "_THETA", 1e6)  # transformers takes 10,000
    assert convert("import", "--hf", other, "--out", tmp_path / "checkpoint") == 0
    assert convert("verify", "--hf", other, "--checkpoint", tmp_path / "checkpoint") == 2
    assert "transformers computes another function than the one that was read" in capsys.readouterr().err


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_gives_back_every_bit_and_file(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    hf = save_model(tmp_path / "hf", tied=tied, dtype=dtype)
    assert convert("import", "--hf", hf, "--out", tmp_path / "checkpoint") == 0
    assert convert("export", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "back") == 0
    before, after = load_file(hf / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(after[name].dtype == dtype and torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (tmp_path / "back" / "tokenizer.json").read_text() == (hf / "tokenizer.json").read_text()
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
        (["import", "--hf", "{hf}", "--out", "{hf}"], "is what is read from"),
        (["import", "--hf", "{hf}", "--out", "{hf}/out"], "lies inside"),
        (["export", "--checkpoint", "{checkpoint}", "--out", "{checkpoint}"], "is what is read from"),
        (["export", "--checkpoint", "{checkpoint}", "--out", "{checkpoint}/hf"], "lies inside"),
        (["export", "--checkpoint", "{checkpoint}", "--out", "{checkpoint}/.."], "holds"),
        (["import", "--hf", "{hf}", "--out", "out", "--tensor", "4"], "must divide the model's 6 attention heads"),
        (["export", "--checkpoint", "{hf}", "--out", "out"], "no config.yaml here"),
        (["verify", "--hf", "{hf}"], "required: --checkpoint"),
    ],
)
def test_mistakes_are_one_line(converted, tmp_path: Path, monkeypatch, capsys, arguments, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert(*[a.format(hf=converted[0], checkpoint=converted[1]) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_folder_with_other_files_loses_nothing(converted, tmp_path: Path, capsys, command: str) -> None:
    source = ("--hf", converted[0]) if command == "import" else ("--checkpoint", converted[1])
    out = tmp_path / "out"
    assert convert(command, *source, "--out", out) == 0
    assert convert(command, *source, "--out", out) == 0, "what it wrote itself is replaced"
    (out / "notes.txt").write_text("years")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert convert(command, *source, "--out", out) == 2
    assert "holds notes.txt, which would be lost" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


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
