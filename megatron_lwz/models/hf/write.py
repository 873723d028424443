"""Writes the files of a Hugging Face folder: safetensors streamed tensor by tensor, config, tokenizer files.

The safetensors layout (8-byte header length, JSON header, raw little-endian data) is written here directly, because the
library's writer needs a whole shard in memory at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from megatron_lwz.config import Architecture
from megatron_lwz.config.hf_config import written_settings
from megatron_lwz.data.tokenizer import read_pad_id, read_token_ids
from megatron_lwz.models.hf.folder import INDEX, SINGLE
from megatron_lwz.models.hf.name_map import Shape
from megatron_lwz.models.hf.tensors import DTYPE_NAMES, tensor_bytes
from megatron_lwz.reading import read_object

CARRIED_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "reward_model.json",
)
"""Files copied unchanged from the folder that the policy came from, where present."""


class ShardWriter:
    """Writes tensors, in the order of `shapes`, into shards of at most `shard_bytes`.

    A larger tensor gets its own shard.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Shape], dtype: torch.dtype, shard_bytes: int) -> None:
        self._folder = folder
        self._dtype = dtype
        self._sizes = {name: prod(shape) * dtype.itemsize for name, shape in shapes.items()}
        self._shapes = shapes
        self._plan = _plan_shards(self._sizes, shard_bytes)
        self._file: BinaryIO | None = None
        self._current: str | None = None

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Appends the next tensor of the plan."""
        file_name = self._plan[name]
        if file_name != self._current:
            self.close()
            self._current = file_name
            self._file = (self._folder / file_name).open("wb")
            self._file.write(self._header([n for n, f in self._plan.items() if f == file_name]))
        assert self._file is not None and tuple(tensor.shape) == self._shapes[name] and tensor.dtype == self._dtype
        self._file.write(tensor_bytes(tensor))

    def close(self) -> None:
        """Closes the open shard."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def write_index(self) -> None:
        """Writes the index of the shards. A single file needs none."""
        if set(self._plan.values()) != {SINGLE}:
            index = {"metadata": {"total_size": sum(self._sizes.values())}, "weight_map": self._plan}
            write_json(self._folder / INDEX, index)

    def _header(self, names: list[str]) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            end = offset + self._sizes[name]
            header[name] = {
                "dtype": DTYPE_NAMES[self._dtype],
                "shape": list(self._shapes[name]),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the format requires aligned data
        return len(text).to_bytes(8, "little") + text


def _plan_shards(sizes: Mapping[str, int], shard_bytes: int) -> dict[str, str]:
    """Returns the file name of each tensor."""
    shard_of, shard, filled = {}, 1, 0
    for name, size in sizes.items():
        if filled and filled + size > shard_bytes:
            shard, filled = shard + 1, 0
        shard_of[name] = shard
        filled += size
    if shard == 1:
        return dict.fromkeys(sizes, SINGLE)
    return {name: f"model-{number:05d}-of-{shard:05d}.safetensors" for name, number in shard_of.items()}


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_config(folder: Path, arch: Architecture, dtype: torch.dtype, source: Path | None) -> None:
    """Writes config.json for the architecture, with what the one of `source` says besides. Raises DataError."""
    path = source / "config.json" if source is not None else None
    carried = read_object(path) if path is not None and path.is_file() else {}
    config = written_settings(arch, carried, str(dtype).removeprefix("torch."))
    if path is not None:
        config |= _token_ids(carried, path)
    if arch.head == "scalar":
        config |= _classifier(source)
    write_json(folder / "config.json", config)


def _token_ids(carried: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the ids that are read here as numbers: other readers do not read "2" or 2.0 as an id."""
    found: dict[str, Any] = {}
    for key in ("eos_token_id", "pad_token_id"):
        ids = read_token_ids(carried, key, path)
        if ids:
            found[key] = ids if isinstance(carried[key], list) else ids[0]
    return found


def _classifier(source: Path | None) -> dict[str, Any]:
    """Returns the settings that make transformers and vLLM read one score per text.

    They are one label, and the padding token that is skipped at the end.
    """
    found: dict[str, Any] = {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}}
    if source is not None and (pad := read_pad_id(source)) is not None:
        found["pad_token_id"] = pad
    return found


def copy_carried_files(source: Path, folder: Path) -> None:
    """Copies generation config and tokenizer files."""
    for name in CARRIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
