"""The verdict of `convert_hf.py verify`: a checkpoint is judged by fp64 and by transformers' own error."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.errors import CheckpointError, DataError
from megatron_lwz.training.verification import (
    Comparison,
    Errors,
    check_function,
    check_same_architecture,
    sample_texts,
)
from tests.support.tiny_qwen2 import write_word_tokenizer

SIZES = {
    "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50,
}  # fmt: skip
HF, CHECKPOINT = Path("folder"), Path("checkpoint")


def config_of(**architecture: object) -> Config:
    return validate({"model": {"architecture": SIZES | architecture}})


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance", "refused"),
    [
        (5e-5, 6e-4, 1e-4, None),
        (6e-4, 6e-4, 1e-4, None),  # no worse than transformers
        (9e-5, 1e-6, 1e-4, None),
        (2e-4, 1e-6, 1e-4, "checkpoint checkpoint: is not the model in folder: log-probs of text are off by 0.0002"),
        (2e-4, 1e-6, 1e-3, None),
        (7e-4, 6e-4, 1e-4, "off by 0.0007 from the exact ones, transformers' own by 0.0006, tolerance 0.0001"),
        (math.nan, 1e-6, 1e-4, "off by nan"),
        (1e-6, 0.5, 1e-4, "checkpoint folder: transformers computes another function than the one that was read"),
        (0.5, 0.5, 1e-4, "transformers computes another function"),
        (1e-6, math.nan, 1e-4, "transformers computes another function"),
        (1e-6, 0.5, 1.0, None),
    ],
)
def test_verdict(ours: float, theirs: float, tolerance: float, refused: str | None) -> None:
    good = Comparison("random tokens", 9, Errors(0.0, 0.0), Errors(0.0, 0.0))
    found = [good, Comparison("text", 9, Errors(ours, 0.0), Errors(theirs, 0.0))]
    if refused is None:
        check_function(found, HF, CHECKPOINT, output="log-prob", tolerance=tolerance)
        return
    with pytest.raises(CheckpointError) as caught:
        check_function(found, HF, CHECKPOINT, output="log-prob", tolerance=tolerance)
    assert refused in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_theta": 10_000.0}, "rope_theta is 1000000.0 in its config.yaml, 10000.0 in config.json"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"head": "scalar"}, "head is language"),
        ({"head_dim": 8}, "head_size is 4"),
        ({"head_dim": 4, "max_position_embeddings": 7, "initializer_range": 1.0}, None),
    ],
)
def test_a_number_that_differs_is_named(change: dict, named: str | None) -> None:
    arch = config_of(**change).architecture()
    if named is None:
        check_same_architecture(config_of(), arch, HF, CHECKPOINT)
        return
    with pytest.raises(CheckpointError, match=r"is not the model in folder") as caught:
        check_same_architecture(config_of(), arch, HF, CHECKPOINT)
    assert named in str(caught.value)


def test_samples_are_random_ids_and_text_of_two_languages(tmp_path: Path) -> None:
    arch = config_of().architecture()
    alone = sample_texts(tmp_path, arch, sequences=3, length=20, seed=0)
    assert list(alone) == ["random tokens"], "no tokenizer"
    assert [len(text) for text in alone["random tokens"]] == [20, 20, 20]
    again = sample_texts(tmp_path, arch, sequences=3, length=20, seed=0)
    assert all(map(torch.equal, alone["random tokens"], again["random tokens"]))
    write_word_tokenizer(tmp_path, ["the", "lighthouse", "keeper"])
    both = sample_texts(tmp_path, arch, sequences=1, length=20, seed=0)
    assert list(both) == ["random tokens", "tokens of text"]
    assert [len(text) for text in both["tokens of text"]] == [20, 2] and int(both["tokens of text"][0][1]) == 2


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, ["the", "lighthouse", "keeper"])
    with pytest.raises(DataError, match=r"tokenizer\.json: gives token id 3, but config\.json has vocab_size 3"):
        sample_texts(tmp_path, config_of(vocab_size=3).architecture(), sequences=1, length=20, seed=0)


def test_texts_to_be_scored_never_end_in_padding(tmp_path: Path) -> None:
    for pad in (0, 1):
        (tmp_path / "config.json").write_text(f'{{"pad_token_id": {pad}}}')
        arch = config_of(vocab_size=2, head="scalar").architecture()
        found = sample_texts(tmp_path, arch, sequences=16, length=2, seed=0)
        assert {int(text[-1]) for text in found["random tokens"]} == {1 - pad}
