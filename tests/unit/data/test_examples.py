"""Examples: length limits, order, epochs, and the two ways to weigh tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_lwz.data.examples import ExampleSource, read_examples, supervised_batch
from megatron_lwz.data.instructions import Rendering
from megatron_lwz.errors import DataError

RENDERING = Rendering("bare", wrap_answer=False)


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def example(name: str, prompt: int, response: int) -> tuple[str, torch.Tensor, torch.Tensor]:
    return name, torch.arange(prompt + response, dtype=torch.int32), torch.arange(prompt + response) >= prompt


def source(**options: object) -> ExampleSource:
    examples = [example(str(index), 2, index + 1) for index in range(5)]
    return ExampleSource(examples, weighting="token", **({"seed": 3, "shuffle": True} | options))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [{"prompt": "Q", "response": "A" * count} for count in (1, 5, 60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "rows.jsonl"


def test_last_questions_without_a_reply_are_counted(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "?"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": said}) + "\n" + json.dumps({"messages": said[:2]}) + "\n")
    found = read_examples([path], encode, [0], rendering=RENDERING, maximum_tokens=400, long_rows="drop")
    assert str(found) == "2 conversations, 0 left out, 0 truncated, 1 last questions without a reply"


def test_long_conversations_are_dropped_or_cut_and_counted(rows: Path) -> None:
    options = {"rendering": RENDERING, "maximum_tokens": 40}
    dropped = read_examples([rows], encode, [0], long_rows="drop", **options)
    assert [name for name, _, _ in dropped.kept] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert dropped.left_out == {"longer than 40 tokens (training.sequence_length)": 1} and dropped.truncated == 0
    cut = read_examples([rows], encode, [0], long_rows="truncate", **options)
    assert (cut.left_out.total(), cut.truncated, len(cut.kept)) == (0, 1, 3)
    assert len(cut.kept[2][1]) == 40 and cut.kept[2][1][-1] == ord("A")
    expected = r"none of 3 rows can be used: 3 longer than 4 tokens \(training.sequence_length\)"
    with pytest.raises(DataError, match=expected):
        read_examples([rows], encode, [0], long_rows="truncate", rendering=RENDERING, maximum_tokens=4)


def test_rows_that_are_no_target_are_counted_by_reason(tmp_path: Path) -> None:
    replies = ["A", "<think>p and on", "<think>p", "<answer>A", "<|im_end|>", "A" * 90]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Q", "response": reply}) + "\n" for reply in replies))
    options = {"rendering": Rendering("bare"), "maximum_tokens": 60, "long_rows": "drop"}
    found = read_examples([path], encode, [0], **options)
    assert [name for name, _, _ in found.kept] == ["rows.jsonl:1"]
    assert str(found.left_out) == (
        "5 left out (2 with thinking that is cut off, 1 with an answer that is cut off, 1 with an empty reply, "
        "1 longer than 60 tokens (training.sequence_length))"
    )
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:3]))
    with pytest.raises(
        DataError, match=r"rows.jsonl: none of 2 rows can be used: 2 with thinking that is cut off; give other rows$"
    ):
        read_examples([path], encode, [0], **options)
    path.write_text("\n")
    with pytest.raises(DataError, match=r"rows.jsonl: holds no row: give other rows$"):
        read_examples([path], encode, [0], **options)


def test_a_batch_weighs_tokens_or_sequences_alike() -> None:
    examples = [example("a", 3, 1), example("b", 1, 4)]
    by_token, by_sequence = supervised_batch(examples, "token"), supervised_batch(examples, "sequence")
    assert by_token.weights.tolist() == [0, 0, 0, 1, 0, 1, 1, 1, 1] and by_token.denominator == 5
    assert by_sequence.weights.tolist() == [0, 0, 0, 1, 0, 0.25, 0.25, 0.25, 0.25] and by_sequence.denominator == 2
    assert by_token.sequences.prompt_lengths.tolist() == [3, 1] and by_sequence.predictions == 5
    assert by_token.sequences.offsets.tolist() == [0, 4, 9]


def test_the_order_depends_on_the_cursor_alone_and_each_epoch_holds_all() -> None:
    batch, cursor = source().take(0, 5)
    assert sorted(batch.ids) == list("01234") and cursor == 5
    second, _ = source().take(cursor, 5)
    assert sorted(second.ids) == list("01234") and second.ids != batch.ids
    pieces = [source().take(at, 1)[0].ids[0] for at in range(10)]
    assert (*batch.ids, *second.ids) == tuple(pieces)
    assert source(shuffle=False).take(3, 3)[0].ids == ("3", "4", "0")


def test_epochs_end_with_a_smaller_batch() -> None:
    two = source(epochs=1.5)
    assert two.total == 8
    batch, cursor = two.take(6, 4)
    assert (len(batch.sequences), cursor) == (2, 8)
    with pytest.raises(DataError, match="epochs"):
        two.take(8, 4)
