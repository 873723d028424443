"""The files of Megatron's indexed dataset: `.bin` holds the tokens, `.idx` the positions of the documents.

The index is little endian: magic, version 1, dtype code, number of sequences, number of document bounds; then int32
lengths, int64 byte offsets, int64 document bounds. Each document is one sequence here. The files are written without
Megatron, so that data preparation needs no torch.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_CODES = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}


def index_fault(path: Path) -> str | None:
    """Returns why a `.idx` file is not one of ours: its header, or its size; None if both are as they should be."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return "the .idx file is truncated"
    magic, version, code, count, bounds = _HEADER.unpack(header)
    if (magic, version, code in _CODES.values(), bounds) != (_MAGIC, 1, True, count + 1):
        return "the .idx file is damaged, or of another format"
    size = _HEADER.size + 12 * count + 8 * bounds
    return None if path.stat().st_size == size else f"the .idx file has not the {size} bytes that its header names"


def token_dtype(vocabulary: int) -> np.dtype:
    """Returns the dtype in which Megatron stores token ids of a vocabulary of this size."""
    return np.dtype(np.uint16 if vocabulary < 65500 else np.int32)


def write_index(file: BinaryIO, lengths: NDArray, dtype: np.dtype) -> None:
    """Writes the `.idx` file of documents with `lengths` tokens each, stored as `dtype`, one after the other."""
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    file.write(_HEADER.pack(_MAGIC, 1, _CODES[dtype], len(lengths), len(lengths) + 1))
    file.write(lengths.astype("<i4").tobytes())
    file.write((ends - lengths.astype(np.int64) * dtype.itemsize).astype("<i8").tobytes())
    file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
