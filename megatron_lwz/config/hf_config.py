"""What of a Hugging Face `config.json` is understood. This module decides it for reading and for writing.

Every key belongs to one of these groups:

- *read*: the fields of `Architecture`, the rotary embedding, the head;
- *fixed* (`_FIXED`, and `Family.fixed` of its family): it changes the function, and only the value that this project
  computes is accepted;
- *without effect* (`_WITHOUT_EFFECT`): transformers' model of the family computes the same whatever it says;
- any other key: transformers' model does not read it either. It is not used, and a warning names it.

What a file leaves out has transformers' default, which is not always the default of `model.architecture`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_lwz.config.families import FAMILIES
from megatron_lwz.config.hf_reader import HfReader, is_one_of
from megatron_lwz.config.hf_rope import ROPE_KEYS, read_rope, written_rope
from megatron_lwz.config.model import Architecture, Head
from megatron_lwz.errors import ConfigError
from megatron_lwz.reading import read_object

log = logging.getLogger(__name__)

FILE = "config.json"

_REQUIRED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
"""Sizes without which there is no model. transformers would take those of a 7B model."""
_KEY_VALUE_HEADS, _POSITIONS, _EPS, _STD = 32, 32768, 1e-6, 0.02
"""transformers' defaults for `num_key_value_heads`, `max_position_embeddings`, `rms_norm_eps` and `initializer_range`."""
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
    "dual_chunk_attention_config": ((None, {}), "vLLM would attend in chunks, and nobody else: remove the key"),
    "per_layer_config": ((None, {}), "all layers must be alike"),
    "quantization_config": ((None, {}), "quantized weights cannot be read: use the folder with bf16 or fp32 weights"),
    "compression_config": ((None, {}), "compressed weights cannot be read: use the folder with bf16 or fp32 weights"),
    "auto_map": (
        (None, {}),
        "the model brings code of its own, which may compute anything: only transformers' own are supported",
    ),
}
"""Key → (values that are accepted, why no other is). A missing key is accepted."""

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
"""Biases are here because the tensors decide about them: a missing or an additional one is an error. In a family whose
config decides, `Family.fixed` comes first."""


def read_hf_architecture(folder: Path) -> Architecture:
    """Reads the Architecture from the `config.json` of a Hugging Face folder, as transformers reads it.

    Raises ConfigError without a file, DataError for whatever in it this project would compute differently.
    """
    path = folder / FILE
    if not path.is_file():
        raise ConfigError("model.hf", str(folder), f"no {FILE} in this folder: name a Hugging Face folder")
    found = HfReader(path, read_object(path))
    kind = found.raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = " and ".join(f"{name!r} ({family.title})" for name, family in FAMILIES.items())
        raise found.error("model_type", f"only {known} are supported")
    found.refuse_others({**_FIXED, **FAMILIES[kind].fixed})
    architecture = _architecture(found)
    _check_layers(found, architecture)
    _warn_about(path, tuple(sorted(found.raw.keys() - _KNOWN)))
    return architecture


def written_settings(arch: Architecture, source: Mapping[str, Any] | None, dtype: str) -> dict[str, Any]:
    """Returns the content of a `config.json` for the architecture, without token ids and labels of a new head.

    Entries of `source`, another folder's config.json, are carried along if they do not contradict the architecture.
    """
    config: dict[str, Any] = {"hidden_act": "silu", "use_sliding_window": False} | _carried(arch, source or {})
    named = {head: name for name, head in _heads(arch.model_type).items()}
    config |= {"architectures": [named[arch.head]]} | arch.model_dump(exclude={"head", "rope_scaling"})
    config["head_dim"] = arch.head_size
    config |= written_rope(arch)
    config["torch_dtype"] = config["dtype"] = dtype
    return config


def _architecture(found: HfReader) -> Architecture:
    raw, kind = found.raw, found.raw["model_type"]
    values: dict[str, Any] = {"model_type": kind} | {key: found.whole(key) for key in _REQUIRED}
    heads = values["num_attention_heads"]
    grouped = raw.get("num_key_value_heads", _KEY_VALUE_HEADS) is not None
    values |= {
        "num_key_value_heads": found.whole("num_key_value_heads", _KEY_VALUE_HEADS) if grouped else heads,
        "max_position_embeddings": found.whole("max_position_embeddings", _POSITIONS),
        "rms_norm_eps": found.number("rms_norm_eps", _EPS),
        "initializer_range": found.number("initializer_range", _STD),
        "tie_word_embeddings": found.flag("tie_word_embeddings", False),
        "head_dim": found.whole("head_dim") if raw.get("head_dim") is not None else None,
        "head": _head(found, kind),
    }
    values["rope_theta"], values["rope_scaling"] = read_rope(found, values["max_position_embeddings"])
    try:
        arch = Architecture(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise found.error(key, first["msg"], values[key]) from error
    if arch.num_attention_heads % arch.num_key_value_heads:
        raise found.error("num_key_value_heads", f"must divide the {heads} attention heads", arch.num_key_value_heads)
    if arch.head_dim is None and arch.family.head_dim is None and arch.hidden_size % heads:
        raise found.error("hidden_size", f"must be a multiple of the {heads} attention heads, or head_dim be given")
    if arch.head_size % 2:
        raise found.error("head_dim", "RoPE needs an even size", arch.head_size)
    return arch


def _heads(model_type: str) -> dict[str, Head]:
    """Returns transformers' classes of the family: name → head."""
    family = FAMILIES[model_type]
    return {family.language: "language", family.scalar: "scalar"}


def _head(found: HfReader, model_type: str) -> Head:
    heads = _heads(model_type)
    named = found.raw.get("architectures") or [*heads][:1]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in [*heads]:
        raise found.error("architectures", f"must name one of {', '.join(heads)}")
    head = heads[named[0]]
    if head == "scalar":
        _check_labels(found)
    return head


def _check_labels(found: HfReader) -> None:
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


def _check_layers(found: HfReader, arch: Architecture) -> None:
    if not _all_full(found.raw.get("layer_types"), arch.num_hidden_layers):
        raise found.error("layer_types", f"must be full_attention for each of the {arch.num_hidden_layers} layers")


def _all_full(types: Any, layers: int) -> bool:
    return types is None or types == ["full_attention"] * layers


def _carried(arch: Architecture, source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of another config.json that may stand beside the architecture's own."""
    if source.get("model_type") != arch.model_type:
        return {key: source[key] for key in _TOKENS if key in source}
    fixed = {**_FIXED, **arch.family.fixed}
    wrong = {key for key, (accepted, _) in fixed.items() if not is_one_of(source.get(key), accepted)}
    if not _all_full(source.get("layer_types"), arch.num_hidden_layers):
        wrong.add("layer_types")
    if source.get("rope_scaling") is not None and arch.rope_scaling is None:
        wrong.add("rope_scaling")
    if source.get("problem_type") is not None:
        wrong.add("problem_type")
    return {key: value for key, value in source.items() if key not in wrong}


_KNOWN = frozenset((*Architecture.model_fields, *_FIXED, *ROPE_KEYS, *_WITHOUT_EFFECT, "layer_types", "architectures"))


@cache
def _warn_about(path: Path, keys: tuple[str, ...]) -> None:
    """Names unknown keys, once per process and file."""
    if keys:
        log.warning("%s: %s is not used (transformers' model does not read it either)", path, ", ".join(keys))
