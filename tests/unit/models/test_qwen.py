from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_lwz.config import Config, validate
from megatron_lwz.config.presets import PRESETS
from megatron_lwz.distributed import platform
from megatron_lwz.errors import ConfigError
from megatron_lwz.models.norm import RMSNorm
from megatron_lwz.models.qwen import attention_backend, padded_vocab_size, transformer_config


@pytest.fixture(autouse=True)
def _platform() -> None:
    platform.install()


def _config(**sections: Any) -> Config:
    return validate({"model": {"preset": "qwen2.5-0.5b"}} | sections)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_published_size_becomes_a_megatron_config(name: str) -> None:
    arch = PRESETS[name]
    settings = transformer_config(arch, _config())
    assert settings.num_query_groups == arch.num_key_value_heads
    assert settings.kv_channels == (128 if name.startswith("qwen3") else arch.hidden_size // arch.num_attention_heads)
    assert settings.layernorm_epsilon == arch.rms_norm_eps
    assert settings.gated_linear_unit
    assert settings.add_qkv_bias is (not name.startswith("qwen3")) and settings.qk_layernorm is name.startswith("qwen3")
    assert settings.softmax_scale is None
    assert not settings.add_bias_linear
    assert settings.params_dtype == settings.pipeline_dtype == torch.bfloat16


def test_vocabulary_padding_does_not_depend_on_the_layout() -> None:
    arch = PRESETS["qwen2.5-0.5b"].model_copy(update={"vocab_size": 1003})
    assert padded_vocab_size(arch, 128) == 1024
    assert padded_vocab_size(arch.model_copy(update={"vocab_size": 1024}), 128) == 1024


def test_sequence_parallel_needs_tensor_parallel() -> None:
    arch = PRESETS["qwen2.5-0.5b"]
    assert not transformer_config(arch, _config()).sequence_parallel
    assert transformer_config(arch, _config(parallel={"tensor": 2})).sequence_parallel
    assert not transformer_config(arch, _config(parallel={"tensor": 2, "sequence": False})).sequence_parallel


def test_norm_weight_is_flagged_for_the_gradient_sum_over_tensor_ranks() -> None:
    arch = PRESETS["qwen2.5-0.5b"]
    for tensor in (1, 2):
        settings = transformer_config(arch, _config(parallel={"tensor": tensor}))
        assert RMSNorm(settings, 8).weight.sequence_parallel == (tensor > 1)


def test_norm_equals_the_formula() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(transformer_config(PRESETS["qwen2.5-0.5b"], _config()), 8, eps=1e-6).double()
    hidden = torch.randn(3, 8, dtype=torch.float64)
    expected = hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(hidden), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA answers")
def test_an_attention_back_end_that_cannot_run_is_refused() -> None:
    assert attention_backend(_config()) == "torch"
    with pytest.raises(ConfigError, match=r"model.attention"):
        attention_backend(_config(model={"preset": "qwen2.5-0.5b", "attention": "flash"}))


def test_transformer_engine_takes_no_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its linear layers hold the norm before them, too. `auto` goes on to the next, a choice is refused by name."""
    monkeypatch.setattr("megatron_lwz.distributed.optional.unusable", lambda package: None)
    assert attention_backend(_config()) == "transformer_engine"
    assert attention_backend(_config(lora={"rank": 8})) == "flash"
    with pytest.raises(
        ConfigError, match=r"model.attention.*its linear layers take no LoRA adapter\): choose auto or torch"
    ):
        attention_backend(
            _config(model={"preset": "qwen2.5-0.5b", "attention": "transformer_engine"}, lora={"rank": 8})
        )
