"""What a teacher must have in common with the policy, and what a config with one must say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.config import Config, validate
from megatron_lwz.config.sections import LoraSection
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError, DataError
from megatron_lwz.training.teacher import check_same_tokens, teacher_config
from tests.support.tiny_qwen2 import write_word_tokenizer


def tokenizer(folder: Path, *words: str) -> Tokenizer:
    write_word_tokenizer(folder, words)
    return Tokenizer(folder)


def config(**grpo: Any) -> Config:
    return validate(
        {"model": {"preset": "qwen2.5-0.5b"}, "data": {"prompts": "p.jsonl"}, "grpo": {"teacher": "models/t", **grpo}}
    )


def test_a_teacher_may_have_more_tokens_but_not_others(tmp_path: Path) -> None:
    policy = tokenizer(tmp_path / "policy", "a", "b")
    check_same_tokens(policy, tokenizer(tmp_path / "more", "a", "b", "c"))
    with pytest.raises(DataError, match=r"other/tokenizer.json.*token 'a' \(id 1\) under id 2, and 1 more so"):
        check_same_tokens(policy, tokenizer(tmp_path / "other", "b", "a"))
    with pytest.raises(DataError, match=r"token 'b' \(id 2\) not at all, and 0 more so"):
        check_same_tokens(policy, tokenizer(tmp_path / "fewer", "a"))


def test_a_teacher_needs_its_coefficient_and_every_group() -> None:
    with pytest.raises(ConfigError, match=r"grpo.teacher.*kl_coefficient 0"):
        config().check_grpo()
    with pytest.raises(ConfigError, match=r"grpo\.zero_variance.*'drop'.*keep"):
        config(kl_coefficient=1.0).check_grpo()
    config(kl_coefficient=1.0, kl_placement="reward", zero_variance="keep").check_grpo()


def test_a_teacher_has_no_adapter_of_the_policys() -> None:
    run = config(kl_coefficient=1.0).model_copy(update={"lora": LoraSection(rank=8)})
    assert run.adapter() is not None
    assert not teacher_config(run).lora.rank
