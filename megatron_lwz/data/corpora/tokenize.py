"""Processes one unit in its own process: texts → tokens, hashes and MinHash values.

The files of a unit are either complete and durable, or absent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_lwz.data.corpora.fingerprints import VALUES, MinHash, text_hash
from megatron_lwz.data.corpora.spec import DuplicateSpec, SourceSpec
from megatron_lwz.data.corpora.units import Unit, read
from megatron_lwz.data.index_file import token_dtype
from megatron_lwz.data.tokenizer import Controls, open_tokenizer, vocabulary_size
from megatron_lwz.errors import DataError, LwzError
from megatron_lwz.writing import replacing

_COUNTS = ("read", "broken", "empty", "bytes", "control_texts")


@dataclass(frozen=True)
class Job:
    """A unit and the path of its output files: `target`.bin (tokens) and `target`.npz (one row per document)."""

    unit: Unit
    source: SourceSpec
    duplicates: DuplicateSpec
    tokenizer: str
    eos: int
    target: Path

    @property
    def done(self) -> bool:
        """Whether both files are complete. The .npz file is written last."""
        return self.target.with_suffix(".npz").exists()


@dataclass(frozen=True)
class UnitRows:
    """The n documents of a finished unit. Empty documents are only counted."""

    lengths: NDArray[np.int32]
    """[n] number of tokens, end-of-text token included."""
    hashes: NDArray[np.uint64]
    """[n, 2] hash of the text."""
    values: NDArray[np.uint32]
    """[n, VALUES] MinHash values."""
    read: int
    broken: int
    empty: int
    bytes: int
    """UTF-8 bytes of all texts read."""
    control_texts: int = 0
    """Documents that spell out a control token; unknown, and 0, in a unit of an earlier version."""


def run(job: Job) -> str | None:
    """Runs the job. Returns the message of an error that the user can fix, None on success.

    The message is returned because exceptions with several arguments cannot be sent between processes.
    """
    try:
        _write(job)
    except LwzError as error:
        return str(error)
    return None


def load_rows(target: Path) -> UnitRows:
    """Loads the document rows that `run` wrote beside the tokens."""
    with np.load(target.with_suffix(".npz"), allow_pickle=False) as file:
        counts = dict(zip(_COUNTS, file["counts"].tolist(), strict=False))
        return UnitRows(file["lengths"], file["hashes"], file["values"], **counts)


def die_with_parent() -> None:
    """Initialises a worker process so that it exits when its parent process ends, even if the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches the whole group; the parent lets us finish our unit
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_open: dict[tuple[str, bool], tuple[Any, Controls]] = {}
"""Cache of this process's tokenizers: building one with a large vocabulary takes seconds."""


def _tokenizer(folder: str, special_tokens: bool) -> tuple[Any, Controls]:
    key = (folder, special_tokens)
    if key not in _open:
        tokenizer = open_tokenizer(Path(folder))
        _open[key] = tokenizer, Controls(tokenizer)
        tokenizer.encode_special_tokens = not special_tokens
    return _open[key]


def _write(job: Job) -> None:
    tokenizer, controls = _tokenizer(job.tokenizer, job.source.special_tokens)
    dtype = token_dtype(vocabulary_size(tokenizer))
    min_hash = MinHash(job.duplicates.shingle, job.duplicates.minimum_shingles)
    counts: Counter[str] = Counter()
    lengths, hashes, values = [], [], []
    tokens_path, rows_path = job.target.with_suffix(".bin"), job.target.with_suffix(".npz")
    with replacing(tokens_path, durable=True) as file:
        for text in _texts(job, counts):
            ids = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
            if not ids:
                counts["empty"] += 1
                continue
            counts["control_texts"] += bool(controls.find(text))
            file.write(np.array([*ids, job.eos], dtype).tobytes())
            lengths.append(len(ids) + 1)
            hashes.append(text_hash(text))
            values.append(min_hash(text))
    with replacing(rows_path, durable=True) as file:
        np.savez(
            file,
            lengths=np.array(lengths, np.int32),
            hashes=np.array(hashes, np.uint64).reshape(-1, 2),
            values=np.array(values, np.uint32).reshape(-1, VALUES),
            counts=np.array([counts[name] for name in _COUNTS], np.int64),
        )


def _texts(job: Job, counts: Counter[str]) -> Iterator[str]:
    for text in read(job.unit, job.source):
        counts["read"] += 1
        if isinstance(text, DataError):
            if not job.source.skip_broken:
                raise text
            counts["broken"] += 1
        else:
            counts["bytes"] += len(text.encode())
            yield text
