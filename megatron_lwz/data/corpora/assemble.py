"""Builds the indexed datasets from finished units: decides which documents stay, splits them and writes the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_lwz.data.corpora.duplicates import first_copies, held_back, near_clusters
from megatron_lwz.data.corpora.spec import CorpusSpec
from megatron_lwz.data.corpora.tokenize import UnitRows
from megatron_lwz.data.index_file import write_index
from megatron_lwz.writing import replacing


@dataclass(frozen=True)
class Verdict:
    """Decision on each of the n documents, in the order of the units: removed, training or validation."""

    exact: NDArray[np.bool]
    """[n] whether the document is removed as an exact copy of an earlier one."""
    near: NDArray[np.bool]
    """[n] whether the document is removed as a near copy of an earlier one."""
    validation: NDArray[np.bool]
    """[n] whether the document is held back for validation, unless it is removed."""

    def selected(self, validation: bool) -> NDArray[np.bool]:
        """Returns a mask [n] of the documents on one side of the split."""
        return ~self.exact & ~self.near & (self.validation == validation)


def judge(rows: list[UnitRows], spec: CorpusSpec) -> Verdict:
    """Finds copies among all documents of all units and splits the rest.

    Takes about 1.5 KB of host memory per document.
    """
    hashes = np.concatenate([unit.hashes for unit in rows])
    first = first_copies(hashes)
    originals = np.flatnonzero(first == np.arange(len(first)))
    values = np.concatenate([unit.values for unit in rows])[originals]
    of_originals = near_clusters(values, spec.duplicates.threshold)
    leaders = np.empty(len(first), np.int64)
    leaders[originals] = originals[of_originals]
    leaders = leaders[first]
    exact = (first != np.arange(len(first))) & spec.duplicates.exact
    return Verdict(
        exact=exact,
        near=(leaders != first) & ~exact & spec.duplicates.near,
        validation=held_back(hashes, leaders, spec.validation, spec.seed),
    )


@dataclass(frozen=True)
class Assembly:
    """One indexed dataset to write: documents of some units, in order."""

    prefix: Path
    dtype: np.dtype
    units: list[tuple[Path, NDArray[np.int32], NDArray[np.bool]]]
    """Token file of the unit, lengths of its documents [n], and which of them to take [n]."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Number of tokens of each document to take, [documents]."""
        return np.concatenate([lengths[taken] for _, lengths, taken in self.units])


def write(assembly: Assembly) -> None:
    """Writes `prefix`.bin, then `prefix`.idx. Once `prefix`.idx exists, both files are complete."""
    prefix = assembly.prefix
    index = prefix.with_name(prefix.name + ".idx")
    if index.exists():
        return
    with replacing(prefix.with_name(prefix.name + ".bin"), durable=True) as file:
        for tokens, lengths, taken in assembly.units:
            with tokens.open("rb") as source:
                for start, stop in _spans(lengths, taken):
                    source.seek(start * assembly.dtype.itemsize)
                    file.write(source.read((stop - start) * assembly.dtype.itemsize))
    with replacing(index, durable=True) as file:
        write_index(file, assembly.lengths, assembly.dtype)


def _spans(lengths: NDArray[np.int32], taken: NDArray[np.bool]) -> Iterator[tuple[int, int]]:
    """Yields [start, stop) in tokens for every run of consecutive documents to take."""
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], taken.astype(np.int8), [0]])))
    yield from zip(bounds[edges[::2]].tolist(), bounds[edges[1::2]].tolist(), strict=True)
