"""tools/convert_hf.py with reward models of other origin: in, verified, out bit by bit; other heads refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from megatron_lwz.cli import common
from tests.support.tiny_qwen2 import write_word_tokenizer
from tools import convert_hf


def save_model(folder: Path, *, labels: int = 1, seed: int = 1) -> Path:
    """Random biases and norms; a padding token that random texts do hold."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=203, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, num_labels=labels, pad_token_id=7, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    model = Qwen2ForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder)
    write_word_tokenizer(folder, ["the", "lighthouse", "keeper"])
    return folder


def convert(*arguments: object) -> int:
    return common.run(convert_hf.main, [str(argument) for argument in arguments])


def test_a_foreign_reward_model_goes_in_and_out_with_every_bit(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    hf, checkpoint, back = save_model(tmp_path / "hf"), tmp_path / "checkpoint", tmp_path / "back"
    assert convert("import", "--hf", hf, "--out", checkpoint) == 0
    assert convert("verify", "--hf", hf, "--checkpoint", checkpoint) == 0
    said = capsys.readouterr().out
    assert "errors of scores in fp32 against fp64" in said and "function: the scores are those of the folder" in said
    assert convert("export", "--checkpoint", checkpoint, "--out", back) == 0
    before, after = load_file(hf / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())
    config = json.loads((back / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"] and config["pad_token_id"] == 7
    other = save_model(tmp_path / "other", seed=2)
    assert convert("verify", "--hf", other, "--checkpoint", checkpoint) == 2
    assert "tensors differ" in capsys.readouterr().err


def test_other_heads_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    two = save_model(tmp_path / "two", labels=2)
    assert convert("import", "--hf", two, "--out", tmp_path / "a") == 2
    assert "a reward model has one label" in capsys.readouterr().err
    deep = save_model(tmp_path / "deep")
    tensors = load_file(deep / "model.safetensors")
    tensors["score.0.weight"] = tensors.pop("score.weight")
    save_file(tensors, deep / "model.safetensors", metadata={"format": "pt"})
    assert convert("import", "--hf", deep, "--out", tmp_path / "b") == 2
    assert "tensor score.weight is missing" in capsys.readouterr().err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
