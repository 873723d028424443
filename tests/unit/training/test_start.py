"""A stage never deletes or replaces the folders that it reads, and says so before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.config import Config, validate
from megatron_lwz.errors import CheckpointError, ConfigError
from megatron_lwz.training.start import check_grpo_start, check_supervised_start
from tests.support.tiny_qwen2 import SIZES, write_word_tokenizer


def config_of(folder: Path, **sections: Any) -> Config:
    write_word_tokenizer(folder / "tokenizer", ["a"])
    sizes = {name: value for name, value in SIZES.items() if name != "rope_parameters"}
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {"architecture": sizes, "tokenizer": str(folder / "tokenizer")},
        "data": {"prompts": "prompts.jsonl", "max_prompt_tokens": 24},
        "rollout": {"max_new_tokens": 40},
        "training": {"sequence_length": 64},
    }
    return validate({name: tree.get(name, {}) | sections.get(name, {}) for name in tree | sections})


def test_a_run_that_would_replace_a_source_by_its_export_is_refused(tmp_path: Path) -> None:
    check_supervised_start(config_of(tmp_path))
    config = config_of(tmp_path, run={"dir": str(tmp_path)}, checkpoint={"load": str(tmp_path / "hf" / "step")})
    with pytest.raises(CheckpointError, match=r"hf: holds .*/hf/step, which is read from"):
        check_supervised_start(config)
    (tmp_path / "hf").symlink_to(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="is what is read from"):
        check_supervised_start(config_of(tmp_path, run={"dir": str(tmp_path)}))


def test_foreign_files_where_the_export_will_stand_are_named_before_the_run(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (tmp_path / "run" / "hf").mkdir(parents=True)
    (tmp_path / "run" / "hf" / "model.safetensors").write_text("of an earlier run")
    check_supervised_start(config)
    (tmp_path / "run" / "hf" / "notes.txt").write_text("years")
    with pytest.raises(CheckpointError, match=r"holds notes\.txt, which would be lost"):
        check_supervised_start(config)


def test_a_run_does_not_start_from_weights_that_it_will_delete(tmp_path: Path) -> None:
    check_grpo_start(config_of(tmp_path))
    config = config_of(tmp_path, checkpoint={"load": str(tmp_path / "run" / "weights" / "3.0")})
    with pytest.raises(ConfigError, match=r"'checkpoint\.load' = .*whose old versions this run deletes"):
        check_grpo_start(config)
