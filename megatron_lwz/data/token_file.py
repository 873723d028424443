"""Token ids of documents in one file that all ranks map into memory: tokenised once, by rank 0."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from megatron_lwz.distributed import exchange, groups
from megatron_lwz.errors import DataError, LwzError

_TOKENS, _LENGTHS = "tokens.bin", "lengths.npy"


def shared_documents(folder: Path, documents: Iterable[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(all token ids, mapped; tokens of each document) of `documents`, which rank 0 alone goes through.

    `folder` must be seen by all ranks; rank 0 replaces its files. Collective where there are ranks. Raises on every
    rank what reading the documents raised on rank 0.
    """
    error = None
    if groups.is_rank_zero():
        try:
            _write(folder, documents)
        except LwzError as raised:
            error = str(raised)
        except OSError as raised:
            error = str(DataError(folder, f"cannot be written ({raised})"))
    if dist.is_initialized():
        error = exchange.broadcast_json(error)
    if error is not None:
        raise LwzError(error)
    lengths = np.load(folder / _LENGTHS, allow_pickle=False)
    return np.memmap(folder / _TOKENS, np.int32, mode="r", shape=(int(lengths.sum()),)), lengths


def _write(folder: Path, documents: Iterable[list[int]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary, lengths = folder / (_TOKENS + ".tmp"), []
    with temporary.open("wb") as file:
        for document in documents:
            np.asarray(document, np.int32).tofile(file)
            lengths.append(len(document))
    if max(lengths, default=0) < 2:
        raise DataError("data.corpus", "no documents: name JSONL files with a `text` key")
    np.save(folder / _LENGTHS, np.asarray(lengths, np.int64))
    temporary.replace(folder / _TOKENS)
