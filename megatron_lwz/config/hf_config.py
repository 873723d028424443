"""What of a Hugging Face `config.json` is understood. This module decides it for reading and for writing.

Every key belongs to one of these groups:

- *read*: the fields of `Architecture`, the rotary embedding, the head;
- *fixed* (`_FIXED`): it changes the function, and only the value that this project computes is accepted;
- *without effect* (`_WITHOUT_EFFECT`): transformers' Qwen2 computes the same whatever it says;
- any other key: transformers' Qwen2 does not read it either. It is not used, and a warning names it.

What a file leaves out has transformers' default, which is not always the default of `model.architecture`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_lwz.config.model import Architecture, Head
from megatron_lwz.errors import ConfigError, DataError
from megatron_lwz.reading import read_object

log = logging.getLogger(__name__)

FILE = "config.json"
MODEL_TYPE = "qwen2"

_REQUIRED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
"""Sizes without which there is no model. transformers would take those of a 7B model."""
_KEY_VALUE_HEADS, _POSITIONS, _EPS, _STD, _THETA = 32, 32768, 1e-6, 0.02, 10_000.0
"""transformers' defaults for `num_key_value_heads`, `max_position_embeddings`, `rms_norm_eps`, `initializer_range`
and `rope_theta`."""

_HEADS: dict[str, Head] = {"Qwen2ForCausalLM": "language", "Qwen2ForSequenceClassification": "scalar"}
_LABELS_OF_TRANSFORMERS = 2
"""Number of labels of a classifier whose config.json names none."""

_FIXED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", "swish"), "the feed-forward blocks are SwiGLU only"),
    "use_sliding_window": ((False, None), "only full attention is supported"),
    "attention_dropout": ((0, None), "there is no dropout: set it to 0.0 if the model need not be trained with it"),
    "is_causal": ((True, None), "only causal attention is supported"),
    "use_bidirectional_attention": ((False, None), "only causal attention is supported"),
    "is_encoder_decoder": ((False, None), "only decoders are supported"),
    "use_mrope": ((False, None), "multimodal RoPE is not supported"),
    "partial_rotary_factor": ((1, None), "RoPE turns whole heads only"),
    "per_layer_config": ((None, {}), "all layers must be alike"),
    "quantization_config": ((None, {}), "quantized weights cannot be read: use the folder with bf16 or fp32 weights"),
    "compression_config": ((None, {}), "compressed weights cannot be read: use the folder with bf16 or fp32 weights"),
    "auto_map": ((None, {}), "the model brings code of its own, which may compute anything: only Qwen2 is supported"),
}
"""Key → (values that are accepted, why no other is). A missing key is accepted."""

_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
_ROPE_KINDS = ("rope_type", "type")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_LABELS = ("num_labels", "id2label", "label2id", "problem_type")

_NAMES = """
_commit_hash _name_or_path name_or_path transformers_version torch_dtype dtype use_cache sliding_window
max_window_layers attn_implementation _attn_implementation _attn_implementation_autoset output_attentions
output_hidden_states return_dict torchscript use_bfloat16 chunk_size_feed_forward tie_last_hidden_states
gradient_checkpointing pruned_heads pretraining_tp attention_bias qkv_bias mlp_bias tokenizer_class
finetuning_task is_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder tf_legacy_loss
prefix task_specific_params sep_token_id decoder_start_token_id do_sample temperature top_k top_p typical_p
repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size max_length min_length
num_beams num_beam_groups num_return_sequences diversity_penalty early_stopping bad_words_ids
forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens begin_suppress_tokens
exponential_decay_length_penalty output_scores return_dict_in_generate is_composition unsloth_fixed
unsloth_version
"""
_WITHOUT_EFFECT = frozenset((*_TOKENS, *_LABELS, *_NAMES.split()))
"""Biases are here because the tensors decide about them: a missing or an additional one is an error."""


def read_hf_architecture(folder: Path) -> Architecture:
    """Reads the Architecture from the `config.json` of a Hugging Face folder, as transformers reads it.

    Raises ConfigError without a file, DataError for whatever in it this project would compute differently.
    """
    path = folder / FILE
    if not path.is_file():
        raise ConfigError("model.hf", str(folder), f"no {FILE} in this folder: name a Hugging Face folder")
    found = _Reader(path, read_object(path))
    kind = found.raw.get("model_type")
    if kind != MODEL_TYPE:
        raise found.error("model_type", f"only {MODEL_TYPE!r} (Qwen2.5) is supported")
    for key, (accepted, why) in _FIXED.items():
        if key in found.raw and not _is_one_of(found.raw[key], accepted):
            raise found.error(key, why)
    architecture = _architecture(found)
    _check_layers(found, architecture)
    _warn_about(path, tuple(sorted(found.raw.keys() - _KNOWN)))
    return architecture


def written_settings(arch: Architecture, source: Mapping[str, Any] | None, dtype: str) -> dict[str, Any]:
    """Returns the content of a `config.json` for the architecture, without token ids and labels of a new head.

    Entries of `source`, another folder's config.json, are carried along if they do not contradict the architecture.
    `rope_theta` is written in both ways: on its own (transformers 4, vLLM) and in `rope_parameters` (transformers 5).
    """
    config: dict[str, Any] = {"hidden_act": "silu", "use_sliding_window": False} | _carried(arch, source or {})
    name = next(name for name, head in _HEADS.items() if head == arch.head)
    config |= {"architectures": [name], "model_type": MODEL_TYPE} | arch.model_dump(exclude={"head"})
    config["head_dim"] = arch.head_size
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": arch.rope_theta}
    config["torch_dtype"] = config["dtype"] = dtype
    return config


class _Reader:
    """The object of one file, whose errors name file, key and value."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path = path
        self.raw = raw

    def error(self, key: str, advice: str, value: Any = None) -> DataError:
        shown = repr(self.raw.get(key) if value is None else value)
        return DataError(self.path, f"{key} = {shown if len(shown) < 120 else shown[:120] + '…'}: {advice}")

    def number(self, key: str, default: float) -> float:
        """Returns a finite number. A text that holds one is read."""
        return self.finite(key, self.raw[key]) if key in self.raw else default

    def whole(self, key: str, default: int | None = None) -> int:
        """Returns a whole number; 896.0 and "896" are read. Without a default the key must be there."""
        if key not in self.raw and default is not None:
            return default
        if key not in self.raw:
            raise DataError(self.path, f"{key} is missing: use the config.json that came with the weights")
        value = self.finite(key, self.raw[key])
        if value != int(value):
            raise self.error(key, "must be a whole number")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def finite(self, key: str, value: Any) -> float:
        found = math.nan
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):
                found = float(value)
        if not math.isfinite(found):
            raise self.error(key, "must be a number", value)
        return found


def _architecture(found: _Reader) -> Architecture:
    raw = found.raw
    values: dict[str, Any] = {key: found.whole(key) for key in _REQUIRED}
    heads = values["num_attention_heads"]
    grouped = raw.get("num_key_value_heads", _KEY_VALUE_HEADS) is not None
    values |= {
        "num_key_value_heads": found.whole("num_key_value_heads", _KEY_VALUE_HEADS) if grouped else heads,
        "max_position_embeddings": found.whole("max_position_embeddings", _POSITIONS),
        "rms_norm_eps": found.number("rms_norm_eps", _EPS),
        "initializer_range": found.number("initializer_range", _STD),
        "tie_word_embeddings": found.flag("tie_word_embeddings", False),
        "head_dim": found.whole("head_dim") if raw.get("head_dim") is not None else None,
        "rope_theta": _rope_theta(found),
        "head": _head(found),
    }
    try:
        arch = Architecture(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise found.error(key, first["msg"], values[key]) from error
    if arch.num_attention_heads % arch.num_key_value_heads:
        raise found.error("num_key_value_heads", f"must divide the {heads} attention heads", arch.num_key_value_heads)
    if arch.head_dim is None and arch.hidden_size % heads:
        raise found.error("hidden_size", f"must be a multiple of the {heads} attention heads, or head_dim be given")
    if arch.head_size % 2:
        raise found.error("head_dim", "RoPE needs an even size", arch.head_size)
    return arch


def _rope_theta(found: _Reader) -> float:
    """Returns the base of the rotary angles. It may stand in three places, which must not contradict each other."""
    given = {"rope_theta": found.number("rope_theta", _THETA)} if "rope_theta" in found.raw else {}
    tables = {}
    for name in ("rope_scaling", "rope_parameters"):
        table = found.raw.get(name)
        if table is None or table == {}:
            continue
        if not isinstance(table, dict):
            raise found.error(name, "must be an object or null")
        tables[name] = table
        kinds = {str(table[key]) for key in _ROPE_KINDS if table.get(key) is not None}
        if kinds - {"default"}:
            advice = f"RoPE scaling {min(kinds - {'default'})!r} is not supported: use the config.json without it"
            raise found.error(name, advice)
        if not _is_one_of(table.get("partial_rotary_factor"), (1, None)):
            raise found.error(name, "RoPE turns whole heads only (partial_rotary_factor 1)")
        unknown = table.keys() - {*_ROPE_KINDS, "rope_theta", "partial_rotary_factor"}
        if unknown:
            raise found.error(name, f"{min(unknown)!r} is not supported: only rope_type 'default' and rope_theta are")
        if "rope_theta" in table:
            given[f"{name}.rope_theta"] = found.finite(name, table["rope_theta"])
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{key} = {value:g}" for key, value in given.items())
        raise DataError(found.path, f"{listed}: they contradict each other; keep the one the model was trained with")
    if len(tables) == 2 and ("rope_theta" in tables["rope_scaling"]) != ("rope_theta" in tables["rope_parameters"]):
        advice = "differs from rope_parameters, which transformers then leaves out: remove one of the two"
        raise found.error("rope_scaling", advice)
    return next(iter(given.values()), _THETA)


def _head(found: _Reader) -> Head:
    named = found.raw.get("architectures") or ["Qwen2ForCausalLM"]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in [*_HEADS]:
        raise found.error("architectures", f"must name one of {', '.join(_HEADS)}")
    head = _HEADS[named[0]]
    if head == "scalar":
        _check_labels(found)
    return head


def _check_labels(found: _Reader) -> None:
    """Raises DataError unless transformers would build a head with one label."""
    names, count = found.raw.get("id2label"), found.raw.get("num_labels")
    if names is not None and not isinstance(names, dict):
        raise found.error("id2label", "must be an object or null")
    key = "num_labels" if count is not None else "id2label"
    labels = {len(names)} if names is not None else set()
    if count is not None:
        labels.add(found.whole("num_labels"))
    if labels != {1}:
        said = "" if labels else f"; without either, transformers takes {_LABELS_OF_TRANSFORMERS}"
        raise found.error(key, f"a reward model has one label (num_labels 1, one entry in id2label){said}")


def _check_layers(found: _Reader, arch: Architecture) -> None:
    if not _all_full(found.raw.get("layer_types"), arch.num_hidden_layers):
        raise found.error("layer_types", f"must be full_attention for each of the {arch.num_hidden_layers} layers")


def _all_full(types: Any, layers: int) -> bool:
    return types is None or types == ["full_attention"] * layers


def _is_one_of(value: Any, accepted: tuple[Any, ...]) -> bool:
    """Whether a value is accepted. `true` is not 1, and `false` is not 0."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in accepted)


def _carried(arch: Architecture, source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of another config.json that may stand beside the architecture's own."""
    if source.get("model_type") != MODEL_TYPE:
        return {key: source[key] for key in _TOKENS if key in source}
    wrong = {key for key, (accepted, _) in _FIXED.items() if not _is_one_of(source.get(key), accepted)}
    if not _all_full(source.get("layer_types"), arch.num_hidden_layers):
        wrong.add("layer_types")
    wrong |= {key for key in ("rope_scaling", "problem_type") if source.get(key) is not None}
    return {key: value for key, value in source.items() if key not in wrong}


_KNOWN = frozenset((*Architecture.model_fields, *_FIXED, *_ROPE, *_WITHOUT_EFFECT, "layer_types", "architectures"))
_KNOWN |= {"model_type"}


@cache
def _warn_about(path: Path, keys: tuple[str, ...]) -> None:
    """Names unknown keys, once per process and file."""
    if keys:
        log.warning("%s: %s is not used (transformers' Qwen2 does not read it either)", path, ", ".join(keys))
