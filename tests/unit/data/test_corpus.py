"""Documents → pieces → steps: nothing lost, nothing crossed, the same order for ever."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_lwz.data.corpus import ArrayPieces, PackedCorpus, read_documents, read_texts
from megatron_lwz.data.token_file import shared_documents
from megatron_lwz.errors import DataError, LwzError
from megatron_lwz.types import SequenceBatch
from tests.support.corpus import packed, pieces_of

EOS = 0


def documents_of(lengths: list[int]) -> list[list[int]]:
    """Documents whose tokens are all different, so that a prediction (a, b) occurs once."""
    tokens = iter(range(1, 10_000))
    return [[*(next(tokens) for _ in range(length)), EOS] for length in lengths]


def predictions(batch: SequenceBatch) -> list[tuple[int, int]]:
    pairs = []
    for start, stop in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        tokens = batch.tokens[start:stop].tolist()
        pairs += list(pairwise(tokens))
    return pairs


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    sequence_length=st.integers(1, 24),
    sequences=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_an_epoch_trains_every_prediction_once(
    lengths: list[int], sequence_length: int, sequences: int, seed: int
) -> None:
    documents = documents_of(lengths)
    corpus = packed(documents, sequence_length=sequence_length, seed=seed, shuffle=True)
    found: list[tuple[int, int]] = []
    cursor = 0
    while cursor < len(corpus):
        before = cursor
        batch, cursor = corpus.take(cursor, sequences)
        assert cursor > before
        assert max(batch.lengths()) <= sequence_length + 1
        assert len(predictions(batch)) <= sequences * sequence_length
        found += predictions(batch)
    expected = {pair for document in documents for pair in pairwise(document)}
    assert set(found) == expected
    assert cursor > len(corpus) or len(found) == len(expected)


def test_the_cursor_alone_says_what_comes_next() -> None:
    documents = documents_of([5, 9, 30, 2, 14, 7])
    corpus = packed(documents, sequence_length=16, seed=3, shuffle=True)
    cursor, batches = 0, []
    for _ in range(6):
        batch, cursor = corpus.take(cursor, 2)
        batches.append((batch.tokens, cursor))
    _, third = batches[2]
    again = packed(documents, sequence_length=16, seed=3, shuffle=True).take(third, 2)
    assert torch.equal(again[0].tokens, batches[3][0]) and again[1] == batches[3][1]


def test_epochs_are_shuffled_anew_and_without_shuffle_in_file_order() -> None:
    documents = documents_of([3] * 20)
    order = packed(documents, sequence_length=60, seed=0, shuffle=True)
    first, cursor = order.take(0, 1)
    second, _ = order.take(cursor, 1)
    assert cursor == 20 and not torch.equal(first.tokens, second.tokens)
    plain, _ = packed(documents, sequence_length=60, seed=0, shuffle=False).take(0, 1)
    assert plain.tokens.tolist() == [token for document in documents for token in document]


def test_every_piece_is_its_own_sequence_with_one_given_token() -> None:
    batch, _ = packed(documents_of([4, 25]), sequence_length=10, seed=0, shuffle=False).take(0, 10)
    assert batch.lengths()[:4] == [5, 11, 11, 6]
    assert set(batch.prompt_lengths.tolist()) == {1}
    assert batch.tokens[4] == EOS


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ('{"text": "a"', "not valid JSON"),
        ('{"txt": "a"}', "'text'"),
        ('["a"]', "a row must be a JSON object"),
        ('{"text": 3}', "'text'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, advice: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"text": "good"}) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 3: .*" + advice):
        list(read_texts(path))


def test_missing_and_empty_corpora_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read"):
        read_documents([tmp_path / "nowhere.jsonl"], lambda text: [1], EOS)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl: no documents"):
        read_documents([empty], lambda text: [1], EOS)


def test_sequences_are_filled_well_also_when_long_and_short_pieces_alternate() -> None:
    documents = documents_of([100 if i % 2 else 7 + i % 5 for i in range(80)])
    corpus = packed(documents, sequence_length=100, seed=0, shuffle=False)
    batch, _ = corpus.take(0, 20)
    assert len(predictions(batch)) > 0.9 * 20 * 100


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    sequence_length=st.integers(1, 24),
    sequences=st.integers(1, 4),
)
def test_without_reset_pieces_follow_each_other_in_a_sequence_in_packing_order(
    lengths: list[int], sequence_length: int, sequences: int
) -> None:
    documents = documents_of(lengths)
    joined = packed(documents, sequence_length=sequence_length, seed=1, shuffle=True, reset=False)
    plain = packed(documents, sequence_length=sequence_length, seed=1, shuffle=True)
    cursor = trained = 0
    while cursor < len(joined):
        batch, after = joined.take(cursor, sequences)
        assert after > cursor
        assert len(batch) <= sequences and max(batch.lengths()) <= sequence_length + 1
        assert sorted(n for each in batch.members for n in each) == list(range(after - cursor)), "every piece once"
        assert all(list(each) == sorted(each) for each in batch.members), "in the order they were packed"
        ends = [*batch.starts.tolist()[1:], len(batch.tokens)]
        pieces = [batch.tokens[a:b].tolist() for a, b in zip(batch.starts.tolist(), ends, strict=True)]
        wanted = [plain.take(cursor + n, 1)[0] for each in batch.members for n in each]
        assert pieces == [one.tokens[: one.lengths()[0]].tolist() for one in wanted]
        trained += len(batch.tokens) - len(batch.starts)
        cursor = after
    expected = {pair for document in documents for pair in pairwise(document)}
    assert cursor > len(joined) or trained == len(expected), "the same predictions as with reset"


def test_validation_is_always_read_apart() -> None:
    held_out = pieces_of(documents_of([3, 4, 5]), sequence_length=30, seed=0, shuffle=False)
    corpus = PackedCorpus(held_out, sequence_length=30, reset=False, validation={"held": held_out})
    (batch,) = corpus.validation("held", 1)
    assert batch.lengths() == [4, 5, 6] and corpus.take(0, 1)[0].lengths()[0] > 6


def test_documents_are_tokenised_once_into_a_file_that_is_mapped(tmp_path: Path) -> None:
    documents = documents_of([4, 1, 7])
    tokens, lengths = shared_documents(tmp_path / "corpus", iter(documents))
    assert isinstance(tokens, np.memmap) and not tokens.flags.writeable
    assert tokens.tolist() == [token for document in documents for token in document]
    assert lengths.tolist() == [5, 2, 8] and not list(tmp_path.rglob("*.tmp"))
    again, _ = shared_documents(tmp_path / "corpus", iter(documents[:1]))  # another attempt replaces it
    assert len(again) == 5
    with pytest.raises(LwzError, match="no documents"):
        shared_documents(tmp_path / "corpus", iter([[EOS]]))
    (tmp_path / "file").touch()
    with pytest.raises(LwzError, match="cannot be written"):
        shared_documents(tmp_path / "file", iter(documents))


@pytest.mark.parametrize("strange", [50, -1])
def test_a_token_that_the_model_does_not_know_is_named_with_its_place(strange: int) -> None:
    """On several ranks the model would train on such a token without an error."""
    documents = [[1, 2, 3, EOS], [4, 49, EOS], [5, strange, EOS]]
    tokens, lengths = np.array([t for each in documents for t in each], np.int32), np.array([4, 3, 3])
    pieces = ArrayPieces(tokens, lengths, sequence_length=3, seed=0, shuffle=False)
    corpus = PackedCorpus(pieces, sequence_length=3, validation={"own": pieces}, vocabulary=50)
    corpus.take(0, 1)
    with pytest.raises(DataError, match=rf"^corpus:2:7: holds token id {strange}, the model has vocab_size 50"):
        corpus.take(1, 2)
    with pytest.raises(DataError, match="corpus:2:7"):
        list(corpus.validation("own", 4))
