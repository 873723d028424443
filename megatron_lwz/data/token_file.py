"""A file with the token ids of all documents. Rank 0 writes it once; all ranks map it into memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from megatron_lwz.distributed import exchange, groups
from megatron_lwz.errors import DataError, LwzError

_TOKENS, _LENGTHS = "tokens.bin", "lengths.npy"


def shared_documents(
    folder: Path, documents: Iterable[list[int]], source: str = "data.corpus"
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Writes `documents` on rank 0 and returns (all token ids, memory-mapped; number of tokens of each document).

    `documents` is read on rank 0 only; errors name `source`. `folder` must be visible to all ranks; rank 0 replaces its files. This is a
    collective when several ranks run. An error while reading the documents on rank 0 is raised on every rank.
    """
    error = None
    if groups.is_rank_zero():
        try:
            _write(folder, documents, source)
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


def _write(folder: Path, documents: Iterable[list[int]], source: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary, lengths = folder / (_TOKENS + ".tmp"), []
    try:
        with temporary.open("wb") as file:
            for document in documents:
                np.asarray(document, np.int32).tofile(file)
                lengths.append(len(document))
        if max(lengths, default=0) < 2:
            raise DataError(source, "no documents: name JSONL files with a `text` key")
    except BaseException:
        temporary.unlink(missing_ok=True)  # the files of an earlier start stay as they are
        raise
    np.save(folder / _LENGTHS, np.asarray(lengths, np.int64))
    temporary.replace(folder / _TOKENS)
