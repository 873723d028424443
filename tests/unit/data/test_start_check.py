"""Model, tokenizer, context and data that do not fit each other are refused before anything is loaded or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.config import Config, validate
from megatron_lwz.data import start_check
from megatron_lwz.data.manifest import Manifest, TokenizerEntry, write_manifest
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError, DataError, LwzError
from tests.support.tiny_qwen2 import SIZES, write_word_tokenizer

WORDS = [f"w{number}" for number in range(19)]
"""With <|endoftext|> 20 tokens."""


def write_model(folder: Path, *, vocabulary: int, positions: int = 64) -> Path:
    write_word_tokenizer(folder, WORDS)
    sizes = SIZES | {"vocab_size": vocabulary, "max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"} | sizes))
    return folder


def config_of(folder: Path, *, vocabulary: int = 20, **sections: Any) -> Config:
    tree = {
        "run": {"dir": str(folder / "run")},
        "model": {"hf": str(write_model(folder / "hf", vocabulary=vocabulary))},
        "data": {"max_prompt_tokens": 24},
        "rollout": {"max_new_tokens": 40},
        "training": {"sequence_length": 64},
    }
    return validate({name: tree.get(name, {}) | sections.get(name, {}) for name in tree | sections})


CHECKS = (start_check.check_rollouts, start_check.check_texts, start_check.check_corpus)


@pytest.mark.parametrize("check", CHECKS)
def test_a_model_as_large_as_its_tokenizer_and_its_longest_text_is_accepted(tmp_path: Path, check) -> None:
    check(config_of(tmp_path))
    check(config_of(tmp_path, vocabulary=300))


@pytest.mark.parametrize("check", CHECKS)
def test_a_tokenizer_larger_than_the_model_is_refused_with_both_sizes(tmp_path: Path, check) -> None:
    with pytest.raises(DataError) as caught:
        check(config_of(tmp_path, vocabulary=19))
    said = str(caught.value)
    assert f"{tmp_path}/hf/tokenizer.json: has ids up to 19, but {tmp_path}/hf/config.json has vocab_size 19" in said


def test_an_end_of_text_token_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (tmp_path / "hf" / "generation_config.json").write_text('{"eos_token_id": [0, 20]}')
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id 20 is no token"):
        start_check.check_rollouts(config)


def test_where_the_sizes_stand_is_named(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, WORDS)
    sizes = {name: value for name, value in SIZES.items() if name != "rope_parameters"} | {"vocab_size": 10}
    own = validate({"model": {"architecture": sizes, "tokenizer": str(tmp_path)}})
    with pytest.raises(DataError, match=r"but model\.architecture has vocab_size 10"):
        start_check.check_texts(own)
    with pytest.raises(ConfigError, match=r"'model\.tokenizer' = None"):
        start_check.check_texts(validate({"model": {"architecture": sizes}}))


def test_a_rollout_beyond_the_context_is_refused_with_all_numbers(tmp_path: Path) -> None:
    config = config_of(tmp_path, rollout={"max_new_tokens": 41})
    with pytest.raises(ConfigError) as caught:
        start_check.check_rollouts(config)
    assert str(caught.value) == (
        "config key 'rollout.max_new_tokens' = 41: with data.max_prompt_tokens = 24, 65 tokens are more than the 64 of "
        f"max_position_embeddings in {tmp_path}/hf/config.json: lower it, give the model YaRN there (rope_scaling), or "
        "raise max_position_embeddings if it is meant to extrapolate"
    )


@pytest.mark.parametrize("check", CHECKS[1:])
def test_a_text_beyond_the_context_is_refused(tmp_path: Path, check) -> None:
    config = config_of(tmp_path, training={"sequence_length": 65})
    with pytest.raises(ConfigError, match=r"'training\.sequence_length' = 65: 65 tokens are more than the 64"):
        check(config)


def test_the_reward_model_that_a_run_serves_is_checked_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "scores", vocabulary=19)
    with pytest.raises(DataError, match=r"scores/tokenizer\.json: has ids up to 19"):
        start_check.check_rollouts(config_of(tmp_path, reward={"writing": {"hf": str(folder)}}))


@pytest.mark.parametrize(("vocabulary", "eos"), [(21, 0), (20, 20)])
def test_a_corpus_for_a_larger_vocabulary_is_refused(tmp_path: Path, vocabulary: int, eos: int) -> None:
    made_for = TokenizerEntry(folder="elsewhere", sha256="0", vocabulary=vocabulary, eos=eos)
    manifest = Manifest(fingerprint="0", tokenizer=made_for, validation_share=0, split_rule="", sources=())
    write_manifest(manifest, tmp_path)
    config = config_of(tmp_path, data={"corpus": [str(tmp_path)]})
    with pytest.raises(DataError, match=rf"{tmp_path}: its tokens have ids up to 20, but .* has vocab_size 20"):
        start_check.check_corpus(config)
    start_check.check_texts(config)  # another stage of the same recipe does not read it


def test_rows_beyond_the_context_are_named(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    start_check.check_rows(config, Path("rows.jsonl"), [("a", 64)])
    with pytest.raises(DataError, match=r"rows\.jsonl: row 'b': 65 tokens are more than the 64"):
        start_check.check_rows(config, Path("rows.jsonl"), [("a", 64), ("b", 65)])


def test_a_server_takes_at_most_what_its_model_takes(tmp_path: Path) -> None:
    arch, tokenizer = config_of(tmp_path).architecture(), Tokenizer(tmp_path / "hf")
    lengths = [start_check.served_length(arch, tokenizer, asked) for asked in (None, 10, 64)]
    assert lengths == [64, 10, 64]
    with pytest.raises(LwzError, match=r"^--max-length 65: 65 tokens are more than the 64"):
        start_check.served_length(arch, tokenizer, 65)
    with pytest.raises(DataError, match="has ids up to 19"):
        start_check.served_length(arch.model_copy(update={"vocab_size": 5}), tokenizer, 10)
