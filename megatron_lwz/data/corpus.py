"""Text for pretraining: JSONL documents → tokens → pieces → the batch of a step.

A document is its text's tokens and one EOS. A piece is a document, or a part of one that is longer than
`training.sequence_length`; a piece of n + 1 tokens trains n predictions, and parts overlap by one token so that no
prediction is lost. Attention and positions never cross a piece. A step takes `training.sequences_per_step` sequences,
each filled with whole pieces up to `training.sequence_length` predictions. The order depends on the seed alone, never
on the layout, and the position in it is one number: the pieces taken so far.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from megatron_lwz.config import Config
from megatron_lwz.data.prompts import PromptOrder
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.errors import DataError
from megatron_lwz.types import SequenceBatch


class Corpus:
    """All documents as token ids in host memory, cut into pieces, in a seeded order."""

    def __init__(self, documents: Sequence[Sequence[int]], *, sequence_length: int, seed: int, shuffle: bool) -> None:
        """`documents` are token ids, EOS included; those of fewer than two tokens train nothing and are left out."""
        self._tokens = torch.tensor([token for document in documents for token in document], dtype=torch.int32)
        self._pieces: list[tuple[int, int]] = []
        start = 0
        for document in documents:
            stop = start + len(document)
            for begin in range(start, stop - 1, sequence_length):
                self._pieces.append((begin, min(begin + sequence_length + 1, stop)))
            start = stop
        self._sequence_length = sequence_length
        self._order = PromptOrder(len(self._pieces), seed, shuffle)

    def __len__(self) -> int:
        """Pieces of one epoch."""
        return len(self._pieces)

    def take(self, cursor: int, sequences: int) -> tuple[SequenceBatch, int]:
        """The batch of one step and the cursor after it.

        `cursor` is the number of pieces taken before, over all epochs; each epoch is shuffled anew. A sequence is
        closed when the next piece does not fit. Every piece has weight 1 and its first token as prompt.
        """
        spans: list[tuple[int, int]] = []
        room, filled = self._sequence_length, 0
        while True:
            start, stop = self._pieces[self._order[cursor]]
            predictions = stop - start - 1
            if predictions > room:
                filled, room = filled + 1, self._sequence_length
            if filled == sequences:
                break
            spans.append((start, stop))
            room -= predictions
            cursor += 1
        lengths = torch.tensor([stop - start for start, stop in spans])
        tokens = torch.cat([self._tokens[start:stop] for start, stop in spans]).long()
        batch = SequenceBatch(
            tokens=tokens,
            offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
            prompt_lengths=torch.ones(len(spans), dtype=torch.int64),
            behaviour_logprobs=torch.zeros(len(tokens)),
            advantages=torch.zeros(len(spans)),
            weights=torch.ones(len(spans)),
        )
        return batch, cursor

    @property
    def validation_sources(self) -> tuple[str, ...]:
        """Names of the sources that hold documents back for validation; none of a JSONL corpus does."""
        return ()

    def validation(self, source: str, sequences: int, limit: int | None = None) -> Iterator[SequenceBatch]:
        """Batches of a source's held-back documents, each like one of `take`; at most `limit` of them.

        The order is that of the files: the same batches at every call, in every run and layout. The last batch may hold
        fewer sequences. Raises KeyError for a name that is not among `validation_sources`.
        """
        raise KeyError(source)


def open_corpus(config: Config) -> Corpus:
    """What `data.corpus` names, ready for `take`. Every rank calls it. Raises DataError or ConfigError."""
    tokenizer = Tokenizer(config.tokenizer_dir())
    documents = read_documents([Path(path) for path in config.data.corpus], tokenizer.encode, min(tokenizer.eos_ids))
    return Corpus(
        documents,
        sequence_length=config.training.sequence_length,
        seed=config.run.seed,
        shuffle=config.data.shuffle,
    )


def read_documents(paths: Sequence[Path], encode: Callable[[str], list[int]], eos: int) -> list[list[int]]:
    """The token ids of every row's `text`, EOS appended, in file order. Raises DataError naming file and line."""
    documents = [[*encode(text), eos] for path in paths for text in read_texts(path)]
    if max(map(len, documents), default=0) < 2:
        raise DataError(", ".join(map(str, paths)) or "data.corpus", "no documents: name JSONL files with a `text` key")
    return documents


def read_texts(path: Path) -> Iterator[str]:
    """The `text` of every row of a JSONL file; blank lines are passed over. Raises DataError naming the line."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _text(line, path, number)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read ({error})") from error


def _text(line: str, path: Path, number: int) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(path, f"not valid JSON ({error})", line=number) from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(path, "needs a string under the key 'text'", line=number)
    return text
