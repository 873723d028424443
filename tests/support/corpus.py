"""Token lists as a packed corpus."""

from __future__ import annotations

from typing import Any

import numpy as np

from megatron_lwz.data.corpus import ArrayPieces, PackedCorpus


def pieces_of(documents: list[list[int]], **options: Any) -> ArrayPieces:
    lengths = np.array([len(document) for document in documents])
    return ArrayPieces(np.concatenate(documents), lengths, **options)


def packed(documents: list[list[int]], *, sequence_length: int, reset: bool = True, **options: Any) -> PackedCorpus:
    pieces = pieces_of(documents, sequence_length=sequence_length, **options)
    return PackedCorpus(pieces, sequence_length=sequence_length, reset=reset)
