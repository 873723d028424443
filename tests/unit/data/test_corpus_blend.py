"""Prepared corpora as pretraining reads them: Megatron's files, exact shares, one order for every layout."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_lwz.config import validate
from megatron_lwz.data.blend import Blend
from megatron_lwz.data.corpus import PackedCorpus, corpus_of, open_corpus
from megatron_lwz.data.index_file import token_dtype, write_index
from megatron_lwz.data.indexed import IndexedPieces, permutation
from megatron_lwz.data.manifest import Manifest, Part, SourceEntry, TokenizerEntry, tokenizer_checksum, write_manifest
from megatron_lwz.data.packing import plan_micro_batches
from megatron_lwz.errors import ConfigError, DataError
from megatron_lwz.types import SequenceBatch

EOS = 0
LENGTH = 16


def write_dataset(prefix: Path, documents: list[list[int]], vocabulary: int = 100_000) -> Part:
    dtype = token_dtype(vocabulary)
    prefix.with_name(prefix.name + ".bin").write_bytes(b"".join(np.array(d, dtype).tobytes() for d in documents))
    with prefix.with_name(prefix.name + ".idx").open("wb") as file:
        write_index(file, np.array([len(d) for d in documents]), dtype)
    return Part(prefix=prefix.name, documents=len(documents), tokens=sum(map(len, documents)))


def documents_of(lengths: list[int], first: int) -> list[list[int]]:
    """Documents whose tokens occur once, so that a prediction (a, b) does too."""
    tokens = iter(range(first, first + 50_000))
    return [[*(next(tokens) for _ in range(length)), EOS] for length in lengths]


def predictions(batch: SequenceBatch) -> list[tuple[int, int]]:
    bounds = zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    return [pair for start, stop in bounds for pair in pairwise(batch.tokens[start:stop].tolist())]


SOURCES = {
    "books": (documents_of([40, 3, 18, 7, 90, 12, 5], 1000), documents_of([21, 4], 60_000)),
    "papers": (documents_of([9, 33, 2, 14], 200_000), None),
    "thoughts": (documents_of([25, 6], 300_000), documents_of([5], 360_000)),
}
SIZES = {
    "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1,
    "num_key_value_heads": 1, "vocab_size": 400_000,
}  # fmt: skip
WEIGHTS = {"books": 0.6, "papers": 0.39, "thoughts": 0.01}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    tiny.save_tokenizer(tiny.train_tokenizer(["a b c"], 280), folder)
    entries = tuple(
        SourceEntry(
            name=name,
            weight=WEIGHTS[name],
            train=write_dataset(folder / f"{name}_train", train),
            validation=held and write_dataset(folder / f"{name}_validation", held),
            read=0, broken=0, empty=0, exact_duplicates=0, near_duplicates=0, bytes=0, paths=(), files=0,
        )
        for name, (train, held) in SOURCES.items()
    )  # fmt: skip
    tokenizer = TokenizerEntry(folder=str(folder), sha256=tokenizer_checksum(folder), vocabulary=280, eos=EOS)
    manifest = Manifest(fingerprint="", tokenizer=tokenizer, validation_share=0.1, split_rule="", sources=entries)
    write_manifest(manifest, folder)
    return folder


def config_of(folder: Path, **data):
    return validate(
        {
            "model": {"tokenizer": str(folder), "architecture": SIZES},
            "data": {"corpus": [str(folder / "manifest.json")], **data},
            "training": {"sequence_length": LENGTH, "tokens_per_micro_batch": 64},
            "run": {"seed": 5},
        }
    )


@pytest.mark.parametrize("vocabulary", [1000, 152_000])
def test_the_files_are_byte_for_byte_those_of_megatrons_builder(tmp_path: Path, vocabulary: int) -> None:
    documents = documents_of([3, 1, 20], 100)
    write_dataset(tmp_path / "ours", documents, vocabulary)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=token_dtype(vocabulary).type)
    for document in documents:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for ending in (".bin", ".idx"):
        assert (tmp_path / f"ours{ending}").read_bytes() == (tmp_path / f"theirs{ending}").read_bytes()


class Sizes:
    """A source of given piece sizes, without tokens."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def predictions(self, k: int) -> int:
        return self.sizes[k % len(self.sizes)]


@given(
    sources=st.lists(
        st.tuples(st.floats(0.001, 1), st.lists(st.integers(1, 1000), min_size=1, max_size=9)), min_size=1, max_size=6
    )
)
def test_after_every_piece_each_source_is_within_one_piece_of_its_share(sources) -> None:
    weights = np.array([weight for weight, _ in sources])
    longest = max(max(sizes) for _, sizes in sources)
    given_so_far = np.zeros(len(sources))
    blend = Blend([Sizes(sizes) for _, sizes in sources], weights.tolist())  # type: ignore[misc]
    for k in range(400):
        source, piece = blend.draw(k)
        given_so_far[source] += blend._sources[source].predictions(piece)
        error = given_so_far - weights / weights.sum() * given_so_far.sum()
        assert abs(error).max() <= longest * (1 + 1e-6)


def test_a_source_of_one_percent_gets_one_percent(prepared: Path) -> None:
    corpus = open_corpus(config_of(prepared))
    counts = dict.fromkeys(SOURCES, 0)
    cursor = 0
    for _ in range(400):
        batch, after = corpus.take(cursor, 4)
        for label, length in zip(corpus.labels(cursor, after), batch.lengths(), strict=True):
            counts[label.split("_")[0]] += length - 1
        cursor = after
    for name, weight in WEIGHTS.items():
        assert abs(counts[name] - weight * sum(counts.values())) <= LENGTH


def test_every_epoch_of_a_source_gives_each_prediction_once(prepared: Path) -> None:
    pieces = IndexedPieces(prepared / "books_train", sequence_length=LENGTH, seed="1", shuffle=True)
    expected = sorted(pair for document in SOURCES["books"][0] for pair in pairwise(document))
    orders = []
    for epoch in range(2):
        found = [pieces[k].tolist() for k in range(epoch * len(pieces), (epoch + 1) * len(pieces))]
        assert sorted(pair for piece in found for pair in pairwise(piece)) == expected
        assert max(map(len, found)) <= LENGTH + 1
        orders.append(found)
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_the_order_is_this_one_in_every_release() -> None:
    assert permutation(8, "1234/books/0").tolist() == [6, 0, 2, 5, 1, 4, 3, 7]
    counts = np.bincount([permutation(5, str(seed))[0] for seed in range(2000)], minlength=5)
    assert counts.min() > 330


def test_a_resumed_corpus_goes_on_where_the_cursor_says(prepared: Path) -> None:
    corpus, cursor, batches = open_corpus(config_of(prepared)), 0, []
    for _ in range(12):
        batch, after = corpus.take(cursor, 3)
        batches.append((cursor, batch, after))
        cursor = after
    for start, batch, after in batches[7:]:
        again, stop = open_corpus(config_of(prepared)).take(start, 3)
        assert stop == after and torch.equal(again.tokens, batch.tokens) and torch.equal(again.offsets, batch.offsets)
    assert torch.equal(corpus.take(batches[2][0], 3)[0].tokens, batches[2][1].tokens)  # back again


def test_every_step_trains_the_same_documents_at_any_data_parallel_size_also_when_it_changes(prepared: Path) -> None:
    def run(sizes: list[int]) -> list[list[tuple[int, int]]]:
        """Per step, what all ranks together train; `sizes`: data-parallel size of each step, resumed at every change."""
        steps, cursor = [], 0
        corpus = open_corpus(config_of(prepared))
        for step, size in enumerate(sizes):
            if step and size != sizes[step - 1]:
                corpus = open_corpus(config_of(prepared))
            batch, cursor = corpus.take(cursor, 6)
            lengths = [length - 1 for length in batch.lengths()]
            plan = plan_micro_batches(lengths, data_size=size, token_cap=32, cost=float)
            pieces = [i for rank in plan for pack in rank for i in pack]
            spans = [batch.tokens[batch.offsets[i] : batch.offsets[i + 1]].tolist() for i in pieces]
            steps.append(sorted(pair for span in spans for pair in pairwise(span)))
        return steps

    reference = run([1] * 8)
    assert run([2] * 8) == reference == run([4] * 8) == run([1, 1, 4, 4, 4, 2, 2, 1])


def test_held_back_documents_come_whole_in_the_same_batches_every_time(prepared: Path) -> None:
    corpus = open_corpus(config_of(prepared))
    assert corpus.validation_sources == ("books", "thoughts")
    first, second = list(corpus.validation("books", 1)), list(corpus.validation("books", 1))
    found = [pair for batch in first for pair in predictions(batch)]
    assert found == [pair for document in SOURCES["books"][1] for pair in pairwise(document)]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True)) and len(first) == 2
    assert len(list(corpus.validation("books", 1, limit=1))) == 1
    assert len(list(corpus.validation("books", 50))) == 1
    with pytest.raises(KeyError):
        next(corpus.validation("papers", 1))


def test_tokens_stay_in_the_mapped_file(prepared: Path) -> None:
    piece = IndexedPieces(prepared / "books_train", sequence_length=LENGTH, seed="1", shuffle=True)[0]
    assert not piece.flags.owndata and not piece.flags.writeable


def test_documents_are_cut_without_loss_and_in_order_when_nothing_is_shuffled(prepared: Path) -> None:
    pieces = IndexedPieces(prepared / "books_train", sequence_length=LENGTH, seed="1", shuffle=False)
    found = [pair for k in range(len(pieces)) for pair in pairwise(pieces[k].tolist())]
    assert found == [pair for document in SOURCES["books"][0] for pair in pairwise(document)]
    assert pieces.label(1) == "books_train:0:16"


def test_a_manifest_that_does_not_fit_is_refused(prepared: Path, tmp_path: Path, tiny) -> None:
    config = config_of(prepared)
    with pytest.raises(ConfigError, match="one manifest"):
        open_corpus(config_of(prepared, corpus=[str(prepared), str(tmp_path / "more.jsonl")]))
    other = tmp_path / "tokenizer"
    other.mkdir()
    tiny.save_tokenizer(tiny.train_tokenizer(["d e f"], 280), other)
    model = config.model.model_copy(update={"tokenizer": str(other)})
    with pytest.raises(DataError, match="another tokenizer"):
        open_corpus(config.model_copy(update={"model": model}))
    with pytest.raises(DataError, match="is the preparation finished"):
        open_corpus(config_of(prepared, corpus=[str(tmp_path)]))
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "megatron_lwz corpus 1"}))
    with pytest.raises(DataError, match="not a manifest"):
        open_corpus(config_of(prepared, corpus=[str(tmp_path)]))


def corpus_in(folder: Path, part: Part, **changes) -> PackedCorpus:
    entry = SourceEntry(
        name="a", weight=1.0, train=part.model_copy(update=changes), validation=None,
        read=0, broken=0, empty=0, exact_duplicates=0, near_duplicates=0, bytes=0, paths=(), files=0,
    )  # fmt: skip
    tokenizer = TokenizerEntry(folder="", sha256="", vocabulary=0, eos=EOS)
    manifest = Manifest(fingerprint="", tokenizer=tokenizer, validation_share=0, split_rule="", sources=(entry,))
    return corpus_of(manifest, folder, sequence_length=LENGTH, seed=0, shuffle=True)


def test_files_that_are_missing_or_cut_off_are_named(tmp_path: Path) -> None:
    part = write_dataset(tmp_path / "a_train", documents_of([5, 6], 1))
    assert len(corpus_in(tmp_path, part)) == 2
    with pytest.raises(DataError, match="the manifest names 99"):
        corpus_in(tmp_path, part, tokens=99)
    with pytest.raises(DataError, match="b_train: not a Megatron indexed dataset"):
        corpus_in(tmp_path, part, prefix="b_train")
    tokens = tmp_path / "a_train.bin"
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(DataError, match="copy it anew"):
        corpus_in(tmp_path, part)
