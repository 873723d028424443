"""Pieces of the documents of Megatron's indexed dataset, in a seeded order.

Megatron's own class reads the files. They are memory-mapped, so that all ranks of a machine share them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_lwz.data.hashing import mix
from megatron_lwz.data.index_file import index_fault
from megatron_lwz.distributed import jit
from megatron_lwz.errors import DataError

jit.install()  # before Megatron-Core is imported

from megatron.core.datasets.indexed_dataset import IndexedDataset  # noqa: E402


class IndexedPieces:
    """The pieces of an indexed dataset, epoch after epoch. Implements `Pieces` of corpus.py.

    A document of n tokens has n − 1 predictions. Every `sequence_length` of them are one piece. The order of an epoch
    depends on seed and epoch alone. Each rank needs 8 bytes of host memory per document and 8 per piece.
    """

    def __init__(self, prefix: Path, *, sequence_length: int, seed: str, shuffle: bool) -> None:
        """Opens the dataset at `prefix`, a path without `.bin`. Raises DataError if a file is missing or truncated."""
        self.name = prefix.name
        try:
            fault = index_fault(prefix.with_name(f"{prefix.name}.idx"))
            if fault is not None:  # before Megatron's class, whose destructor fails on a damaged index
                raise DataError(prefix, f"{fault}: copy it anew")
            self._data = IndexedDataset(str(prefix))
        except (AssertionError, OSError, ValueError) as error:
            raise DataError(prefix, f"not a Megatron indexed dataset ({error})") from error
        self._lengths: NDArray[np.int32] = self._data.sequence_lengths
        self.tokens = int(self._lengths.sum(dtype=np.int64))
        if int(self._lengths.min(initial=1)) < 1 or not self._is_dense():
            raise DataError(prefix, "the .idx file is damaged: its documents do not follow each other; copy it anew")
        size = prefix.with_name(prefix.name + ".bin").stat().st_size
        if size != self.tokens * np.dtype(self._data.index.dtype).itemsize:
            raise DataError(
                prefix, f"the .bin file has {size} bytes, its index names {self.tokens} tokens: copy it anew"
            )
        pieces = -(-(self._lengths.astype(np.int64) - 1) // sequence_length)
        self._bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(pieces)])
        self._sequence_length = sequence_length
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    def _is_dense(self) -> bool:
        """Whether each document begins where the one before it ends."""
        starts: NDArray[np.int64] = self._data.index.sequence_pointers
        steps = self._lengths[:-1].astype(np.int64) * np.dtype(self._data.index.dtype).itemsize
        return int(starts[0]) == 0 and bool(np.array_equal(np.diff(starts), steps)) if len(starts) else True

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, k: int) -> NDArray:
        """Returns the tokens of the k-th piece, int32 or uint16, as a view of the mapped file."""
        document, begin, tokens = self._locate(k)
        return self._data.get(document, begin, tokens)

    def predictions(self, k: int) -> int:
        """Returns the number of predictions of the k-th piece without reading its tokens."""
        return self._locate(k)[2] - 1

    def label(self, k: int) -> str:
        """Returns where the k-th piece lies: `name:document:first token`."""
        document, begin, _ = self._locate(k)
        return f"{self.name}:{document}:{begin}"

    def _locate(self, k: int) -> tuple[int, int, int]:
        epoch, position = divmod(k, len(self))
        if self._shuffle:
            if epoch != self._epoch:
                self._epoch, self._order = epoch, permutation(len(self), f"{self._seed}/{epoch}")
            position = int(self._order[position])
        document = int(np.searchsorted(self._bounds, position, side="right")) - 1
        begin = (position - int(self._bounds[document])) * self._sequence_length
        return document, begin, min(self._sequence_length + 1, int(self._lengths[document]) - begin)


def permutation(count: int, seed: str) -> NDArray[np.int64]:
    """Returns a random order of range(count): indices sorted by their hash, independent of any library's generator."""
    key = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest(), "little")
    return np.argsort(mix(mix(np.arange(count, dtype=np.uint64)) ^ np.uint64(key)), kind="stable")
