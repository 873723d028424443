"""A tiny policy with random weights that cannot end a text: every rollout runs to its token limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_lwz.config import Architecture
from megatron_lwz.models.hf import RandomInit
from megatron_lwz.models.hf.name_map import EMBEDDING, HEAD, tensor_shapes
from megatron_lwz.models.hf.write import write_config

LARGE = 5.0


def write_endless_policy(folder: Path, architecture: dict[str, Any], *, end: int) -> Path:
    """Writes a Hugging Face folder in which token `end` has a probability of 0 after every text.

    The first hidden dimension is the same for all tokens, no layer adds to it, and only the logit of `end` reads it.
    """
    arch, folder = Architecture(**architecture), folder / "policy"
    folder.mkdir(parents=True)
    tensors = {name: RandomInit(arch, seed=1).read(name, shape) for name, shape in tensor_shapes(arch).items()}
    tensors[EMBEDDING][:, 0] = LARGE
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[0] = 0.0
    tensors[HEAD][:, 0] = 0.0
    tensors[HEAD][end] = 0.0
    tensors[HEAD][end, 0] = -100.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_config(folder, arch, torch.float32, None)
    return folder
