"""Model folders, safetensors, and checkpoints."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.bad_inputs.place import HF_CONFIG, Bad
from tests.support.bad_inputs.spoils import Spoil, append, both, cut, flip, put, remove, replace

_IMPORT = "convert_hf import --hf {}/hf --out {}/out"
_EXPORT = "convert_hf export --checkpoint {}/checkpoint --out {}/out"
_VERIFY = "convert_hf verify --hf {}/hf --checkpoint {}/checkpoint"
_ENGINE = "lwz serve-engine --model {}/hf --port 0"
_REWARD = "lwz serve-reward --model {}/hf --port 0"
_LOAD = "train_grpo {}/config.yaml run.dir={}/out model.architecture=null model.hf={}/hf"
_WEIGHTS = "hf/model.safetensors"


def _config(**changes: Any) -> Spoil:
    kept = {key: value for key, value in {**HF_CONFIG, **changes}.items() if value is not None}
    return put("hf/config.json", json.dumps(kept))


def _header(tensors: Any, size: int = 0) -> Spoil:
    text = json.dumps(tensors).encode()
    return put(_WEIGHTS, struct.pack("<Q", len(text)) + text + bytes(size))


def _another(place: Path) -> None:
    tensors = load_file(place / _WEIGHTS)
    save_file({**tensors, "model.norm.weight": torch.ones(32)}, place / _WEIGHTS)


CONFIGS = (
    Bad("convert_hf import --hf {}/gone --out {}/out", "'{}/gone'", "no config.json", "name a Hugging Face folder"),
    Bad(_IMPORT, "'{}/hf'", "no config.json", "name a Hugging Face folder", remove("hf/config.json")),
    Bad(_IMPORT, "{}/hf/config.json", "not valid JSON", "correct it", put("hf/config.json", b"{")),
    Bad(_IMPORT, "{}/hf/config.json: model_type", "'llama'", "only 'qwen2'", _config(model_type="llama")),
    Bad(
        _IMPORT,
        "{}/hf/config.json: hidden_size",
        "is missing",
        "use the config.json that came with the weights",
        _config(hidden_size=None),
    ),
    Bad(_IMPORT, "{}/hf/config.json: hidden_size", "'big'", "must be a number", _config(hidden_size="big")),
    Bad(_IMPORT, "{}/hf/config.json: hidden_size", "32.5", "must be a whole number", _config(hidden_size=32.5)),
    Bad(_IMPORT, "num_key_value_heads", "3", "must divide", _config(num_key_value_heads=3)),
    Bad(_IMPORT, "{}/hf/config.json: hidden_act", "'gelu'", "SwiGLU only", _config(hidden_act="gelu")),
    Bad(
        _IMPORT,
        "{}/hf/config.json: quantization_config",
        "gptq",
        "use the folder with bf16 or fp32 weights",
        _config(quantization_config={"quant_method": "gptq"}),
    ),
    Bad(
        _IMPORT,
        "{}/hf/config.json: rope_scaling",
        "longrope",
        "use the config.json without it",
        _config(rope_scaling={"rope_type": "longrope", "factor": 4}),
    ),
    Bad(_LOAD, "{}/hf/config.json", "vocab_size 200", "use the tokenizer", _config(vocab_size=200)),
)
TENSORS = (
    Bad(_IMPORT, "{}/hf", "neither model.safetensors", "name a folder with weights", remove(_WEIGHTS)),
    Bad(
        _IMPORT,
        "{}/hf",
        "pytorch_model.bin is a pickle",
        "save the model as safetensors",
        both(remove(_WEIGHTS), put("hf/pytorch_model.bin", b"x")),
    ),
    Bad(_IMPORT, "{}/hf: file model.safetensors", "header too small", "copy it again", put(_WEIGHTS, b"")),
    Bad(_IMPORT, "{}/hf: file model.safetensors", "damaged or truncated", "copy it again", cut(_WEIGHTS, -100)),
    Bad(_IMPORT, "{}/hf: file model.safetensors", "not fully covered", "copy it again", append(_WEIGHTS, b"more")),
    Bad(
        _IMPORT,
        "{}/hf: tensor model.embed_tokens.weight",
        "is missing",
        "use the config.json that came with the weights",
        _header({}),
    ),
    Bad(_IMPORT, "{}/hf: file model.safetensors", "damaged or truncated", "copy it again", flip(_WEIGHTS, 3)),
    Bad(
        _IMPORT,
        "{}/hf: tensor model.norm.weight",
        "I32",
        "only BF16, F16, F32",
        replace(_WEIGHTS, b'"model.norm.weight":{"dtype":"F32"', b'"model.norm.weight":{"dtype":"I32"'),
    ),
    Bad(
        _IMPORT,
        "{}/hf: model.safetensors.index.json",
        "'../x'",
        "only files in the folder itself",
        both(remove(_WEIGHTS), put("hf/model.safetensors.index.json", b'{"weight_map": {"a": "../x"}}')),
    ),
    Bad(
        _IMPORT,
        "{}/hf: file gone.safetensors",
        "is missing",
        "copy the folder again",
        both(
            remove(_WEIGHTS),
            put("hf/model.safetensors.index.json", b'{"weight_map": {"model.norm.weight": "gone.safetensors"}}'),
        ),
    ),
    Bad(
        _IMPORT,
        "{}/hf: lwz_checksums.json",
        "is damaged",
        "copy the folder again, or delete this file",
        put("hf/lwz_checksums.json", b"{"),
    ),
    Bad(_LOAD, "{}/hf: file model.safetensors", "truncated", "copy it again", cut(_WEIGHTS, -100)),
    Bad(_ENGINE, "{}/hf: file model.safetensors", "truncated", "copy it again", cut(_WEIGHTS, -100)),
    Bad(_ENGINE, "{}/hf", "no tokenizer.json", "copy the file there", remove("hf/tokenizer.json")),
    Bad(_ENGINE + " --max-length 9999", "--max-length", "9999", "lower it"),
    Bad(_REWARD, "{}/hf/config.json", "of a language model", "must name Qwen2ForSequenceClassification"),
)
CHECKPOINTS = (
    Bad("convert_hf export --checkpoint {}/gone --out {}/out", "{}/gone", "no checkpoint here", "check the path"),
    Bad(
        _EXPORT,
        "{}/checkpoint",
        "checksums.json is damaged",
        "copy it again, or use another checkpoint",
        put("checkpoint/checksums.json", b"{"),
    ),
    Bad(
        _EXPORT,
        "{}/checkpoint",
        "__0_0.distcp",
        "copy it again, or use another checkpoint",
        flip("checkpoint/__0_0.distcp", -9),
    ),
    Bad(
        _EXPORT,
        "{}/checkpoint",
        "__0_0.distcp",
        "copy it again, or use another checkpoint",
        cut("checkpoint/__0_0.distcp", -9),
    ),
    Bad(_EXPORT, "{}/checkpoint", "__0_0.distcp", "copy it again", remove("checkpoint/__0_0.distcp")),
    Bad(_EXPORT, "{}/checkpoint", "metadata.json", "copy it again", put("checkpoint/metadata.json", b"{}")),
    Bad(
        _EXPORT,
        "{}/checkpoint",
        ".metadata",
        "copy it again",
        put("checkpoint/.metadata", b"cos\nsystem\n(S'true'\ntR."),
    ),
    Bad(_EXPORT.replace("{}/out", "{}/checkpoint"), "{}/checkpoint", "is what is read from", "name another folder"),
    Bad(_EXPORT.replace("{}/out", "{}/prompts.jsonl"), "{}/prompts.jsonl", "is a file", "name a folder to write to"),
    Bad(_EXPORT, "{}/out", "holds mine.txt", "name another folder, or move it away", put("out/mine.txt", b"x")),
    Bad(_EXPORT + " --adapter", "{}/checkpoint", "has no LoRA adapter", "drop --adapter"),
    Bad(
        _LOAD + " lora.rank=4 checkpoint.load={}/checkpoint",
        "{}/checkpoint",
        "holds a whole model, no LoRA adapter",
        "name the frozen model in model.hf",
    ),
    Bad(_IMPORT.replace("{}/out", "{}/hf/out"), "{}/hf/out", "lies inside", "name another folder"),
    Bad(
        _IMPORT.replace("{}/out", "{}/prompts.jsonl/out"),
        "{}/prompts.jsonl",
        "Not a directory",
        "a part of the path is a file",
    ),
    Bad(
        _VERIFY,
        "{}/checkpoint",
        "num_hidden_layers is 1",
        "name the folder that it was made from",
        _config(num_hidden_layers=2),
    ),
    Bad(_VERIFY, "{}/checkpoint", "1 of 14 tensors differ", "name the folder that it was made from", _another),
    Bad(_VERIFY + " --length 1", "--length", "1", "must be at least 2"),
    Bad(
        "train_grpo {}/config.yaml run.dir={}/out checkpoint.load={}/gone",
        "{}/gone",
        "no checkpoint here",
        "check the path",
    ),
    Bad(
        "train_grpo {}/config.yaml run.dir={}/out checkpoint.load={}/checkpoint",
        "{}/checkpoint",
        "num_hidden_layers is 1",
        "use the model of the checkpoint",
    ),
    Bad("score {}/gone --input {}/tokens.jsonl --output {}/o", "{}/gone", "No such file", "check the path"),
    Bad(
        "score {}/checkpoint --input {}/tokens.jsonl --output {}/gone/o",
        "--output {}/gone/o",
        "there is no folder",
        "make it",
    ),
    Bad("score {}/checkpoint --input {}/tokens.jsonl --output {}/hf", "--output {}/hf", "is a folder", "name a file"),
)
TABLE = (*CONFIGS, *TENSORS, *CHECKPOINTS)
