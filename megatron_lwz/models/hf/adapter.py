"""Writes the adapters of a policy with LoRA as a PEFT folder, which peft and vLLM load over the base model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_lwz.config.sections import LoraSection
from megatron_lwz.models.hf.checksum import checksum_of
from megatron_lwz.models.hf.export import stream_adapter, write_folder
from megatron_lwz.models.hf.folder import ADAPTER
from megatron_lwz.models.hf.name_map import module_of, unwrap
from megatron_lwz.models.hf.write import write_json

WEIGHTS = "adapter_model.safetensors"
ADAPTER_EXPORT = re.compile("|".join(map(re.escape, (ADAPTER, WEIGHTS))))
"""Names of the files of an exported adapter."""


def export_adapter(
    chunks: Sequence[torch.nn.Module], folder: Path, *, base: str | None, dtype: torch.dtype | None = None
) -> str:
    """Writes the adapters to `folder`; every rank calls it. Returns the checksum of their weights (hex), on every rank.

    `base` is the name of the model below them, as peft is to find it. `dtype` None keeps the parameters' type. The folder
    appears whole or not at all; only an earlier export is replaced. Raises LwzError, on every rank alike.
    """
    lora: LoraSection = unwrap(chunks[0]).lora
    dtype = dtype or next(chunks[0].parameters()).dtype
    stream = stream_adapter(chunks, torch.float32)

    def write(temporary: Path) -> str:
        tensors = {
            name: _rescaled(name, tensor, lora).to(dtype).contiguous() for name, tensor in stream if tensor is not None
        }
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / ADAPTER, _settings(lora, base))
        return checksum_of(tensors.items())

    return write_folder(stream, folder, write, kind=ADAPTER_EXPORT)


def _settings(lora: LoraSection, base: str | None) -> dict[str, Any]:
    """Returns the content of adapter_config.json.

    vLLM knows one rank and one alpha: the largest rank, and the alpha that gives every module the common factor. What a
    module's own factor is more than that is in its B (`_rescaled`). So both read the same function.
    """
    ranks = {module: lora.rank_of(module) for module in lora.modules}
    largest, common = max(ranks.values()), _common(lora)
    smaller = {module: rank for module, rank in ranks.items() if rank != largest}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": largest,
        "lora_alpha": _number(common * largest),
        "target_modules": sorted(ranks),
        "rank_pattern": smaller,
        "alpha_pattern": {module: _number(common * rank) for module, rank in smaller.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _rescaled(name: str, tensor: torch.Tensor, lora: LoraSection) -> torch.Tensor:
    """Returns the tensor as it is under the common factor: B takes over what its module's own factor is more."""
    return tensor * (lora.scale_of(module_of(name)) / _common(lora)) if ".lora_B." in name else tensor


def _common(lora: LoraSection) -> float:
    return lora.alpha / lora.rank


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value
