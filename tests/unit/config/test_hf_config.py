"""Foreign config.json files: read as transformers reads them, or refused in one line that names file and key."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config, Qwen3Config

from megatron_lwz.config import Architecture, read_hf_architecture
from megatron_lwz.config.hf_config import written_settings
from megatron_lwz.config.model import Yarn
from megatron_lwz.errors import ConfigError, DataError

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
CONFIG = {"model_type": "qwen2", **SIZES}
SCORER = {"architectures": ["Qwen2ForSequenceClassification"], "num_labels": 1}


def write(folder: Path, config: Any) -> Path:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return folder


def published(layers: int, hidden: int, ffn: int, heads: int, groups: int, vocab: int, **rest: Any) -> dict[str, Any]:
    """A config.json with the keys of the published Qwen2 and Qwen2.5 models."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": 32768,
        "max_window_layers": layers,
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": groups,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": vocab,
    } | rest


PUBLISHED = {
    "0.5B": published(24, 896, 4864, 14, 2, 151936, tie_word_embeddings=True, max_window_layers=24),
    "0.5B-Instruct": published(24, 896, 4864, 14, 2, 151936, tie_word_embeddings=True, max_window_layers=21),
    "1.5B": published(28, 1536, 8960, 12, 2, 151936, tie_word_embeddings=True, max_position_embeddings=131072),
    "3B": published(36, 2048, 11008, 16, 2, 151936, tie_word_embeddings=True, max_window_layers=36),
    "7B": published(28, 3584, 18944, 28, 4, 152064, sliding_window=131072, max_position_embeddings=131072),
    "14B": published(48, 5120, 13824, 40, 8, 152064, rms_norm_eps=1e-05, sliding_window=131072),
    "32B-Instruct": published(64, 5120, 27648, 40, 8, 152064, rms_norm_eps=1e-05, eos_token_id=151645),
    "72B": published(80, 8192, 29568, 64, 8, 152064, rms_norm_eps=1e-05, max_window_layers=80, rope_scaling=None),
    "Math-7B": published(28, 3584, 18944, 28, 4, 152064, rope_theta=10000, max_position_embeddings=4096),
    "distilled 1.5B": published(28, 1536, 8960, 12, 2, 151936, rope_theta=10000, sliding_window=4096, max_window_layers=21),
    "fine-tuned": published(28, 3584, 18944, 28, 4, 152064, _name_or_path="x/y", pad_token_id=151665, sliding_window=None),
    "transformers 5": {
        key: value
        for key, value in published(
            24, 896, 4864, 14, 2, 151936, dtype="bfloat16", layer_types=["full_attention"] * 24, pad_token_id=None,
            rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"}, sliding_window=None,
        ).items()
        if key not in ("rope_theta", "torch_dtype", "use_mrope")
    },
}  # fmt: skip
QWEN3 = published(
    36, 2560, 9728, 32, 8, 151936, architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=128,
    attention_bias=False, rope_scaling=None, sliding_window=None, tie_word_embeddings=True, eos_token_id=151645,
)  # fmt: skip
del QWEN3["use_mrope"]
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
PUBLISHED["Qwen3-4B"] = QWEN3
PUBLISHED["Qwen3-4B with YaRN"] = QWEN3 | {
    "rope_scaling": {**YARN, "rope_type": "yarn"},
    "max_position_embeddings": 131072,
}
PUBLISHED["7B-Instruct with YaRN"] = PUBLISHED["7B"] | {"rope_scaling": YARN}


def assert_read_as_transformers_does(folder: Path) -> Architecture:
    ours = read_hf_architecture(folder)
    theirs = (Qwen2Config if ours.model_type == "qwen2" else Qwen3Config).from_pretrained(folder)
    for name in (*SIZES, "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "initializer_range"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (ours.head_dim or ours.family.head_dim) == getattr(theirs, "head_dim", None)
    assert_same_scaling(ours, theirs.rope_parameters)
    return ours


def assert_same_scaling(ours: Architecture, theirs: dict[str, Any]) -> None:
    if ours.rope_scaling is None:
        assert theirs["rope_type"] == "default"
        return
    assert theirs["rope_type"] == "yarn"
    for name in ("factor", "original_max_position_embeddings"):
        assert getattr(ours.rope_scaling, name) == theirs[name]
    for name in ("beta_fast", "beta_slow", "attention_factor"):
        assert theirs.get(name) in (None, getattr(ours.rope_scaling, name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_without_a_warning(tmp_path: Path, caplog, name: str) -> None:
    arch = assert_read_as_transformers_does(write(tmp_path, PUBLISHED[name]))
    assert arch.head == "language" and caplog.records == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "head_dim": None}),
        ({"rope_theta": 5000.0}, {"rope_theta": 5000.0}),
        ({"rope_theta": 5000.0, "rope_scaling": None}, {"rope_theta": 5000.0}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, {"rope_theta": 5000.0}),
        ({"rope_scaling": {"type": "default", "rope_theta": 5000.0}}, {"rope_theta": 5000.0}),
        ({"rope_parameters": {"rope_type": "default"}}, {"rope_theta": 10_000.0}),
        ({"rope_theta": 5000, "rope_parameters": {"rope_theta": 5000.0}}, {"rope_theta": 5000.0}),
        ({"num_key_value_heads": None}, {"num_key_value_heads": 4}),
        ({"head_dim": 8}, {"head_dim": 8}),
        ({"hidden_act": "swish", "tie_word_embeddings": True}, {"tie_word_embeddings": True}),
        ({"layer_types": ["full_attention"] * 2}, {}),
        (SCORER, {"head": "scalar"}),
        ({"architectures": SCORER["architectures"], "id2label": {"0": "LABEL_0"}}, {"head": "scalar"}),
        ({"architectures": None, "quantization_config": None, "is_causal": True}, {"head": "language"}),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, {"rope_scaling": Yarn(factor=4, original_max_position_embeddings=32768)}),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.5, "rope_theta": 7.0, "beta_fast": 9, "attention_factor": 1.5,
                                 "original_max_position_embeddings": 100}, "max_position_embeddings": 160},
            {"rope_theta": 7.0, "context_length": 250, "rope_scaling": Yarn(
                factor=2.5, original_max_position_embeddings=100, beta_fast=9, attention_factor=1.5)},
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 9},
             "original_max_position_embeddings": 9},
            {"rope_scaling": Yarn(factor=4, original_max_position_embeddings=9)},
        ),
        ({"model_type": "qwen3"}, {"model_type": "qwen3", "head_dim": None, "head_size": 128}),
        ({"model_type": "qwen3", "head_dim": 6, "attention_bias": False}, {"head_size": 6}),
        (SCORER | {"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]}, {"head": "scalar"}),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_left_out_or_stands_elsewhere_is_read_as_transformers_reads_it(tmp_path, change, found) -> None:
    arch = assert_read_as_transformers_does(write(tmp_path, CONFIG | change))
    assert {name: getattr(arch, name) for name in found} == found


def test_absent_key_value_heads_are_as_many_as_transformers_takes(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
    sizes = {"num_attention_heads": 64, "hidden_size": 128}
    assert assert_read_as_transformers_does(write(tmp_path, config | sizes)).num_key_value_heads == 32
    with pytest.raises(DataError, match="num_key_value_heads = 32: must divide the 4 attention heads"):
        read_hf_architecture(write(tmp_path, config))


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"hidden_size": 16.0}, "hidden_size", 16),
        ({"hidden_size": "16"}, "hidden_size", 16),
        ({"rms_norm_eps": "1e-06"}, "rms_norm_eps", 1e-6),
        ({"rope_theta": "1000000"}, "rope_theta", 1e6),
    ],
)
def test_numbers_in_another_form_are_read(tmp_path: Path, change, field: str, value: float) -> None:
    found = getattr(read_hf_architecture(write(tmp_path, CONFIG | change)), field)
    assert found == value and type(found) is type(value)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    assert read_hf_architecture(write(tmp_path, "\ufeff" + json.dumps(CONFIG))).vocab_size == 50


REFUSED = [
    ({"num_hidden_layers": 10**9}, "num_hidden_layers.*1000000000.*4096"),
    ({"vocab_size": 10**12}, "vocab_size.*16777216"),
    ({"model_type": "qwen3_moe"}, r"model_type = 'qwen3_moe': only 'qwen2' \(Qwen2.5\) and 'qwen3' \(Qwen3\) are"),
    ({"model_type": ["qwen2"]}, "model_type = "),
    ({"model_type": "qwen3", "attention_bias": True}, "attention_bias = True: the published Qwen3"),
    ({"model_type": "qwen3", "architectures": ["Qwen2ForCausalLM"]}, "architectures = .*Qwen3ForCausalLM"),
    ({"architectures": ["Qwen3ForCausalLM"]}, "architectures = .*Qwen2ForCausalLM"),
    ({"model_type": None}, "model_type = None"),
    ({"rope_scaling": {"type": "yarn"}}, "rope_scaling = .*YaRN needs 'factor'"),
    ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "rope_scaling = .*factor must be at least 1"),
    ({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 0}}, "rope_scaling = .*all others above 0"),
    ({"rope_scaling": {"type": "yarn", "factor": "x"}}, "rope_scaling = 'x': must be a number"),
    ({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 1.5}}, "a whole number"),
    ({"rope_scaling": {"type": "yarn", "factor": 4, "mscale": 0.7}}, "'mscale' is not supported"),
    ({"rope_scaling": {"type": "yarn", "factor": 4, "truncate": False}}, "whole dimensions only"),
    ({"rope_scaling": {"type": "yarn", "factor": 1e300}}, "rope_scaling = .*factor: .*too large"),
    (
        {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 1e300}},
        "rope_scaling = .*original.*too large",
    ),
    (
        {"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 4}},
        "rope_scaling = .*needs a rope_theta above 1, not 1",
    ),
    (
        {"rope_scaling": {"type": "yarn", "factor": 4}, "original_max_position_embeddings": 9},
        "original_max_position_embeddings = 9: differs from the 32768 of rope_scaling",
    ),
    ({"rope_scaling": {"type": "yarn", "rope_type": "default", "factor": 4}}, "contradict each other"),
    ({"rope_scaling": {"type": "yarn", "factor": 4}, "rope_parameters": {"rope_type": "default"}}, "differs from"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6}}, "RoPE scaling 'linear'"),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}, "RoPE scaling 'mrope'"),
    ({"rope_scaling": {"type": "default", "rope_type": "dynamic"}}, "RoPE scaling 'dynamic'"),
    ({"rope_scaling": {"type": "default", "factor": 4}}, "rope_scaling = .*'factor' is not supported"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters = .*'full_attention'"),
    ({"rope_scaling": 2}, "rope_scaling = 2: must be an object"),
    ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}, r"rope_theta = 1e\+06, .* contradict"),
    ({"rope_scaling": {"rope_theta": 1e6}, "rope_parameters": {"rope_theta": 1e4}}, "contradict"),
    ({"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 1e6}}, "differs from rope_parameters"),
    ({"rope_theta": None}, "rope_theta = None: must be a number"),
    ({"rope_theta": -1}, "rope_theta = -1"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"use_sliding_window": True}, "use_sliding_window = True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = "),
    ({"layer_types": ["full_attention"]}, "layer_types = "),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
    ({"is_causal": False}, "is_causal = False"),
    ({"use_mrope": True}, "use_mrope = True"),
    ({"dual_chunk_attention_config": {"chunk_size": 262144}}, "dual_chunk_attention_config = .*remove the key"),
    ({"per_layer_config": {"0": {"rms_norm_eps": 1e-3}}}, "per_layer_config"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config = .*'fp8'"),
    ({"auto_map": {"AutoModel": "modeling.Mine"}}, "auto_map = .*code of its own"),
    ({"architectures": ["Qwen2ForTokenClassification"]}, "architectures = "),
    ({"architectures": ["Qwen2Model"]}, "architectures = "),
    ({"architectures": "Qwen2ForCausalLM"}, "architectures = "),
    ({"architectures": [["Qwen2ForCausalLM"]]}, "architectures = "),
    ({"architectures": ["Qwen2ForCausalLM", "Qwen2ForSequenceClassification"]}, "architectures = "),
    ({"architectures": SCORER["architectures"]}, "one label .*transformers takes 2"),
    (SCORER | {"num_labels": 5}, "num_labels = 5: a reward model has one label"),
    (SCORER | {"id2label": {"0": "a", "1": "b"}}, "one label"),
    ({"vocab_size": None}, "vocab_size = None: must be a number"),
    ({"vocab_size": True}, "vocab_size = True: must be a number"),
    ({"vocab_size": 50.5}, "vocab_size = 50.5: must be a whole number"),
    ({"vocab_size": "many"}, "vocab_size = 'many'"),
    ({"vocab_size": [50]}, "vocab_size = "),
    ({"vocab_size": 0}, "vocab_size = 0"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
    ({"rms_norm_eps": float("inf")}, "rms_norm_eps = inf"),
    ({"tie_word_embeddings": "true"}, "tie_word_embeddings = 'true': must be true or false"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1"),
    ({"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide"),
    ({"hidden_size": 18}, "hidden_size = 18"),
    ({"head_dim": 3}, "head_dim = 3: RoPE needs an even size"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_would_be_computed_differently_is_refused_by_name(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_hf_architecture(write(tmp_path, CONFIG | change))
    assert str(tmp_path / "config.json") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "{", "null", '"qwen2"', ""])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        read_hf_architecture(write(tmp_path, text))


def test_missing_sizes_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'model.hf' = .*no config\.json"):
        read_hf_architecture(tmp_path)
    with pytest.raises(DataError, match="num_hidden_layers is missing"):
        read_hf_architecture(write(tmp_path, {"model_type": "qwen2"}))


def test_unknown_keys_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, CONFIG | {"rope_ratio": 2.0, "my_key": 1})
    with caplog.at_level(logging.WARNING):
        read_hf_architecture(tmp_path), read_hf_architecture(tmp_path)
    (record,) = caplog.records
    assert f"{tmp_path / 'config.json'}: my_key, rope_ratio is not used" in record.getMessage()


@pytest.mark.parametrize("head", ["language", "scalar"])
@pytest.mark.parametrize(
    "source",
    [
        {},
        CONFIG | {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}},
        QWEN3,
        CONFIG | {"rope_parameters": {"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0}},
        CONFIG | {"hidden_act": "gelu", "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
        CONFIG | {"quantization_config": {"quant_method": "fp8"}, "auto_map": {"AutoModel": "m.M"}},
        CONFIG | {"architectures": ["Qwen2Model"], "partial_rotary_factor": 0.5, "head_dim": 64},
        SCORER | CONFIG | {"problem_type": "single_label_classification"},
        {"model_type": "llama", "mlp_bias": True, "eos_token_id": 3},
    ],
    ids=lambda value: json.dumps(value)[-50:],
)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_written_config_says_what_the_architecture_says(tmp_path: Path, source: dict, head: str, kind: str) -> None:
    """Also if the settings come from the folder of another model, such as that of the tokenizer."""
    arch = Architecture(**SIZES, rope_theta=12345.0, head_dim=4, head=head, model_type=kind)
    labels = {"num_labels": 1} if head == "scalar" else {}
    assert assert_read_as_transformers_does(write(tmp_path, written_settings(arch, source, "float32") | labels)) == arch
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == 12345.0 and written.get("rope_scaling") is None
    assert written["rope_parameters"] == {"rope_type": "default", "rope_theta": 12345.0}
    assert written["hidden_act"] == "silu" and written["use_sliding_window"] is False
    assert written.get("eos_token_id") == source.get("eos_token_id") and "mlp_bias" not in written


def test_yarn_is_written_where_every_version_reads_it(tmp_path: Path) -> None:
    yarn = Yarn(factor=4, original_max_position_embeddings=64, attention_factor=1.25)
    arch = Architecture(**SIZES, rope_theta=12345.0, head_dim=4, rope_scaling=yarn)
    for source in ({}, CONFIG, CONFIG | {"rope_scaling": {"type": "linear", "factor": 2.0}}):
        assert assert_read_as_transformers_does(write(tmp_path, written_settings(arch, source, "float32"))) == arch
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_scaling"]["type"] == "yarn" and written["rope_theta"] == 12345.0  # transformers 4, vLLM


def test_published_settings_survive_a_rewrite(tmp_path: Path) -> None:
    for config in PUBLISHED.values():
        arch = read_hf_architecture(write(tmp_path, config))
        written = written_settings(arch, config, "bfloat16")
        kept = {key: value for key, value in config.items() if key != "rope_scaling" or value is None}
        assert {key: written[key] for key in kept} == kept
        assert (config.get("rope_scaling") or {}).items() <= (written.get("rope_scaling") or {}).items()
