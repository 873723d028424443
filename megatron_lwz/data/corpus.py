"""Text for pretraining: documents → tokens → pieces → the batch of a step.

A document is its text's tokens and one EOS. A piece is a document, or a part of a document that is longer than
`training.sequence_length`. A piece of n + 1 tokens trains n predictions. Parts overlap by one token so that no
prediction is lost.

A step takes `training.sequences_per_step` sequences, each filled with whole pieces up to `training.sequence_length`
predictions. Attention and positions are reset at each piece. If `data.reset_attention` is off, a piece attends to the
pieces before it in its sequence.

The order depends on the seed alone, never on the parallel layout. The position in it is one number: the pieces taken so
far.

`data.corpus` names files of rows, which rank 0 tokenises into a file of the run folder, or the manifest of a corpus that
`lwz corpus` wrote: indexed datasets, blended by weight. Both kinds of file are memory-mapped, so that all
ranks of a machine share them.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_lwz.config import Config
from megatron_lwz.data.blend import Blend
from megatron_lwz.data.indexed import IndexedPieces
from megatron_lwz.data.manifest import Manifest, Part, is_manifest, read_manifest, tokenizer_checksum
from megatron_lwz.data.prompts import PromptOrder
from megatron_lwz.data.token_file import shared_documents
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import ConfigError, DataError
from megatron_lwz.reading import read_rows
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import SequenceBatch

log = logging.getLogger(__name__)


class Pieces(Protocol):
    """Pieces in an endless order, epoch after epoch."""

    def __len__(self) -> int:
        """Returns the number of pieces in one epoch."""
        ...

    def __getitem__(self, k: int) -> NDArray:
        """Returns the token ids of the k-th piece, counted over all epochs. A piece has at least two tokens."""
        ...

    def label(self, k: int) -> str:
        """Returns where the k-th piece comes from."""
        ...


@dataclass(frozen=True)
class PackedBatch(SequenceBatch):
    """Pieces as sequences. Each piece is one sequence; without attention reset, pieces packed together are one."""

    members: tuple[tuple[int, ...], ...]
    """Numbers of the pieces of each sequence, counted from the batch's cursor."""
    starts: torch.Tensor
    """[pieces] int64: where in `tokens` each piece begins. That first token is not trained: nothing predicts it."""


class PackedCorpus:
    """Fills the sequences of a step with pieces. Every rank holds the same corpus and gets the same batches."""

    def __init__(
        self,
        pieces: Pieces,
        *,
        sequence_length: int,
        reset: bool = True,
        validation: Mapping[str, Pieces] | None = None,
        vocabulary: int | None = None,
    ) -> None:
        """Takes pieces of at most `sequence_length` + 1 tokens. `reset` is `data.reset_attention`.

        `validation` maps the name of a source to its held-back pieces. Each of those is always a sequence of its own.
        `vocabulary` is the model's: a batch with another token id raises DataError.
        """
        self._pieces = pieces
        self._sequence_length = sequence_length
        self._reset = reset
        self._validation = dict(validation or {})
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        """Returns the number of pieces in one epoch (of several sources: in one epoch of each)."""
        return len(self._pieces)

    def take(self, cursor: int, sequences: int) -> tuple[PackedBatch, int]:
        """Returns the batch of one step and the cursor after it.

        `cursor` is the number of pieces taken before, over all epochs. Each epoch has its own order. The batch ends
        before the first piece that fits into none of its sequences.
        """
        batch = _fill((self._pieces[k] for k in count(cursor)), sequences, self._sequence_length, apart=self._reset)
        self._check_ids(batch, self._pieces, cursor)
        return batch, cursor + len(batch.starts)

    def labels(self, start: int, stop: int) -> list[str]:
        """Returns where the pieces between two cursors come from (`source:document:first token`), to find bad data."""
        return [self._pieces.label(k) for k in range(start, stop)]

    @property
    def validation_sources(self) -> tuple[str, ...]:
        """Names of the sources that have validation documents. A corpus of JSONL files has none."""
        return tuple(self._validation)

    def validation(self, source: str, sequences: int, limit: int | None = None) -> Iterator[PackedBatch]:
        """Yields at most `limit` batches of a source's held-back documents, with attention reset at each piece.

        The pieces come in file order, so the batches are the same at every call, in every run and layout. The last
        batch may hold fewer sequences. Raises KeyError for a name that is not among `validation_sources`.
        """
        pieces = self._validation[source]
        cursor = batches = 0
        while cursor < len(pieces) and (limit is None or batches < limit):
            rest = (pieces[k] for k in range(cursor, len(pieces)))
            batch = _fill(rest, sequences, self._sequence_length, apart=True)
            self._check_ids(batch, pieces, cursor)
            yield batch
            cursor, batches = cursor + len(batch.starts), batches + 1

    def _check_ids(self, batch: PackedBatch, pieces: Pieces, cursor: int) -> None:
        """Raises DataError that names the first piece with a token for which the model has no embedding."""
        if self._vocabulary is None:
            return
        strange = ((batch.tokens < 0) | (batch.tokens >= self._vocabulary)).nonzero()
        if len(strange):
            at = int(strange[0])
            order = [number for members in batch.members for number in members]
            label = pieces.label(cursor + order[int((batch.starts <= at).sum()) - 1])
            advice = f"holds token id {int(batch.tokens[at])}, the model has vocab_size {self._vocabulary}"
            raise DataError(label, f"{advice}: prepare the corpus with the model's tokenizer")


def _fill(pieces: Iterator[NDArray], sequences: int, length: int, *, apart: bool) -> PackedBatch:
    """Takes pieces until the next one fits into none of `sequences` sequences of `length` predictions, or none is left.

    With `apart`, each piece becomes its own sequence in the batch, and room is counted in predictions. Without it, the
    pieces of a sequence are joined, and room is counted in tokens: the first token of each joined piece is a prediction
    that is not trained, and the inputs of the joined sequence must still fit `length`.
    """
    taken: list[NDArray] = []
    filled: list[list[int]] = [[] for _ in range(sequences)]
    extra = 0 if apart else 1
    rooms = [(length + extra, i) for i in range(sequences)]  # ascending: a piece goes where it fits tightest
    for number, piece in enumerate(pieces):
        size = len(piece) - 1 + extra
        tightest = bisect_left(rooms, (size, -1))
        if tightest == len(rooms):
            break
        room, sequence = rooms.pop(tightest)
        insort(rooms, (room - size, sequence))
        filled[sequence].append(number)
        taken.append(piece)
    members = [(number,) for number in range(len(taken))] if apart else [tuple(each) for each in filled if each]
    sizes = torch.tensor([len(taken[number]) for each in members for number in each])
    ends = sizes.cumsum(0)
    lengths = torch.tensor([sum(len(taken[number]) for number in each) for each in members])
    tokens = torch.from_numpy(np.concatenate([taken[n] for each in members for n in each]).astype(np.int64))
    return PackedBatch(
        tokens=tokens,
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prompt_lengths=torch.ones(len(members), dtype=torch.int64),
        behaviour_logprobs=torch.zeros(len(tokens)),
        advantages=torch.zeros(len(members)),
        weights=torch.ones(len(members)),
        members=tuple(members),
        starts=ends - sizes,
    )


class ArrayPieces:
    """Pieces, in a seeded order, of documents that lie one after the other in an array."""

    def __init__(self, tokens: NDArray, lengths: NDArray, *, sequence_length: int, seed: int, shuffle: bool) -> None:
        """Takes the token ids and the number of tokens of each document, EOS included.

        Documents of fewer than two tokens train nothing and are left out.
        """
        self._tokens = tokens
        stops = np.cumsum(lengths)
        counts = -(-np.maximum(lengths - 1, 0) // sequence_length)  # pieces per document
        self._documents = np.repeat(np.arange(len(lengths)), counts)
        within = np.arange(len(self._documents)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._starts = np.repeat(stops - lengths, counts) + within * sequence_length
        self._stops = np.minimum(self._starts + sequence_length + 1, np.repeat(stops, counts))
        self._order = PromptOrder(len(self._documents), seed, shuffle)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, k: int) -> NDArray:
        piece = self._order[k]
        return self._tokens[self._starts[piece] : self._stops[piece]]

    def label(self, k: int) -> str:
        """Returns the number of the document and the offset in all tokens at which the piece begins."""
        piece = self._order[k]
        return f"corpus:{self._documents[piece]}:{self._starts[piece]}"


def open_corpus(config: Config) -> PackedCorpus:
    """Opens the corpus that `data.corpus` names. Every rank must call it. Raises LwzError."""
    paths, length = config.data.corpus, config.training.sequence_length
    seed, shuffle, reset = config.run.seed, config.data.shuffle, config.data.reset_attention
    vocabulary = config.architecture().vocab_size
    if any(map(is_manifest, paths)):
        if len(paths) > 1:
            raise ConfigError("data.corpus", list(paths), "name one manifest, or JSONL files, not both")
        path = Path(paths[0])
        manifest = read_manifest(path)
        _check_tokenizer(manifest, path, config.tokenizer_dir())
        folder = path if path.is_dir() else path.parent
        return corpus_of(
            manifest, folder, sequence_length=length, seed=seed, shuffle=shuffle, reset=reset, vocabulary=vocabulary
        )
    tokenizer = Tokenizer(config.tokenizer_dir())
    documents = tokenized(map(Path, paths), tokenizer.encode, min(tokenizer.eos_ids))
    tokens, lengths = shared_documents(RunPaths(config.run.dir).new_corpus, documents, ", ".join(paths))
    if note := tokenizer.control_note():
        log.warning(
            "%s: %d documents%s; remove one at a document's end, each gets its own",
            ", ".join(paths),
            len(lengths),
            note,
        )
    pieces = ArrayPieces(tokens, lengths, sequence_length=length, seed=seed, shuffle=shuffle)
    return PackedCorpus(pieces, sequence_length=length, reset=reset)


def corpus_of(
    manifest: Manifest,
    folder: Path,
    *,
    sequence_length: int,
    seed: int,
    shuffle: bool,
    reset: bool = True,
    vocabulary: int | None = None,
) -> PackedCorpus:
    """Opens the blend that a manifest in `folder` describes. Raises DataError when a file does not match it."""

    def pieces(part: Part, name: str, mixed: bool) -> IndexedPieces:
        if (fault := part.fault(folder, contents=False)) is not None:
            raise DataError(folder / part.prefix, f"{fault}: copy the corpus again, or prepare it anew")
        found = IndexedPieces(
            folder / part.prefix, sequence_length=sequence_length, seed=f"{seed}/{name}", shuffle=mixed
        )
        if found.tokens != part.tokens:
            raise DataError(folder / part.prefix, f"holds {found.tokens} tokens, the manifest names {part.tokens}")
        return found

    train = [(pieces(s.train, s.name, shuffle), s.weight) for s in manifest.sources if s.train]
    if not train:
        raise DataError(folder, "no source has a document to train on")
    return PackedCorpus(
        Blend([source for source, _ in train], [weight for _, weight in train]),
        sequence_length=sequence_length,
        reset=reset,
        validation={s.name: pieces(s.validation, s.name, False) for s in manifest.sources if s.validation},
        vocabulary=vocabulary,
    )


def _check_tokenizer(manifest: Manifest, path: Path, folder: Path) -> None:
    if tokenizer_checksum(folder) != manifest.tokenizer.sha256:
        advice = f"was prepared with another tokenizer ({manifest.tokenizer.folder}) than {folder}: prepare it anew"
        raise DataError(path, advice)


def read_documents(paths: Sequence[Path], encode: Callable[[str], list[int]], eos: int) -> list[list[int]]:
    """Reads every row's `text` as token ids, EOS appended, in file order. Raises DataError naming file and line."""
    documents = list(tokenized(paths, encode, eos))
    if max(map(len, documents), default=0) < 2:
        raise DataError(
            ", ".join(map(str, paths)) or "data.corpus", "no documents: name files of rows with a `text` key"
        )
    return documents


def tokenized(paths: Iterable[Path], encode: Callable[[str], list[int]], eos: int) -> Iterator[list[int]]:
    """Yields the documents of `read_documents` one after the other."""
    return ([*encode(text), eos] for path in paths for text in read_texts(path))


def read_texts(path: Path) -> Iterator[str]:
    """Yields the `text` of every row of a file. Raises DataError naming the line."""
    for row in read_rows(path):
        text = row.value.get("text")
        if not isinstance(text, str):
            keys = ", ".join(row.value) or "nothing"
            advice = f"needs a string under the key 'text', the row has {keys:.200}"
            raise row.error(f"{advice}; `lwz corpus` reads other keys")
        yield text
