"""Reading config.json: what we would compute differently from transformers is refused, not passed over."""

import json
from pathlib import Path

import pytest

from megatron_lwz.config import read_hf_architecture
from megatron_lwz.errors import DataError

CONFIG = {
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5000.0},  # transformers 4
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},  # transformers 5
        {"rope_theta": 5000.0, "rope_scaling": None, "use_sliding_window": False},
    ],
)
def test_rope_theta_is_read_from_both_generations(tmp_path: Path, rope: dict) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | rope))
    assert read_hf_architecture(tmp_path).rope_theta == 5000.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "RoPE scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6}}, "RoPE scaling 'linear'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_what_the_model_does_not_do_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(DataError, match=words):
        read_hf_architecture(tmp_path)
