"""Human pairs in the usual formats, and what is said about any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.data.preferences.formats import parse_pair, read_pairs
from megatron_lwz.errors import DataError

USER = {"role": "user", "content": "Write a poem."}


def turns(text: str) -> list[dict[str, str]]:
    return [USER, {"role": "assistant", "content": text}]


HH = "\n\nHuman: Write a poem.\n\nAssistant: {}"
ROWS: dict[str, tuple[dict[str, Any], float | None]] = {
    "texts": ({"prompt": "Write a poem.", "chosen": "good", "rejected": "bad"}, None),
    "margin": ({"question": "Write a poem.", "chosen": "good", "rejected": "bad", "margin": 2}, 2.0),
    "messages": ({"chosen": turns("good"), "rejected": turns("bad")}, None),
    "ultrafeedback binarized": (
        {
            "prompt": "Write a poem.",
            "chosen": turns("good"),
            "rejected": turns("bad"),
            "score_chosen": 8.5,
            "score_rejected": 7.0,
        },
        1.5,
    ),
    "hh": ({"chosen": HH.format("good"), "rejected": HH.format("bad")}, None),
    "ultrafeedback": (
        {
            "instruction": "Write a poem.",
            "completions": [
                {"response": "fair", "overall_score": 5.0},
                {"response": "bad", "overall_score": 2.0},
                {"response": "good", "overall_score": 8.0},
            ],
        },
        6.0,
    ),
    "winner": ({"prompt": "Write a poem.", "response_a": "bad", "response_b": "good", "winner": "model_b"}, None),
    "safe rlhf": (
        {"prompt": "Write a poem.", "response_0": "bad", "response_1": "good", "better_response_id": 1},
        None,
    ),
    "numbered": ({"prompt": "Write a poem.", "response_1": "good", "response_2": "bad", "preference": 1}, None),
    "arena": ({"conversation_a": turns("good"), "conversation_b": turns("bad"), "winner": "model_a"}, None),
}


@pytest.mark.parametrize(("row", "margin"), ROWS.values(), ids=ROWS)
def test_every_format_gives_the_same_pair(row: dict[str, Any], margin: float | None) -> None:
    pair = parse_pair(row, "x:1", source="x")
    assert pair is not None
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == ("Write a poem.", "good", "bad", margin)
    assert (pair.kind, pair.source, pair.language) == ("human", "x", "en")


def test_instruction_with_input_and_longer_conversations_keep_everything_before_the_reply() -> None:
    pair = parse_pair({"instruction": "Sum up.", "input": "A text.", "chosen": "a", "rejected": "b"}, "x:1")
    assert pair is not None and pair.prompt == "Sum up.\n\nA text."
    said = [USER, {"role": "assistant", "content": "Of what?"}, {"role": "user", "content": "Rain."}]
    chosen, rejected = ([*said, {"role": "assistant", "content": text}] for text in ("a", "b"))
    pair = parse_pair({"chosen": chosen, "rejected": rejected}, "x:1")
    assert pair is not None and [word in pair.prompt for word in ("Write a poem.", "Of what?", "Rain.")] == [True] * 3


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "same", "rejected": "same"},
        {"prompt": "p", "chosen": "good", "rejected": "  "},
        {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "tie (bothbad)"},
        {"instruction": "p", "completions": [{"response": "a", "score": 1}, {"response": "b", "score": 1}]},
    ],
)
def test_rows_that_prefer_nothing_are_left_out(row: dict[str, Any]) -> None:
    assert parse_pair(row, "x:1") is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a", "label_x": 1}, "present are: text, label_x"),
        ({"response_a": "a", "response_b": "b"}, "no column says which is better"),
        ({"response_a": "a", "response_b": "b", "winner": "me"}, "'winner' = 'me' names neither"),
        ({"chosen": "a", "rejected": ["b"]}, "must both be texts or both lists"),
        ({"chosen": [USER], "rejected": [USER]}, "must end with the assistant's reply"),
        ({"instruction": "p", "completions": [{"response": "a"}]}, "no completion has a response and one of"),
    ],
)
def test_unknown_formats_are_one_line_with_the_columns_present(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        list(read_pairs(path))
    assert words in str(caught.value) and "line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_parquet_and_own_rows_come_back_as_they_were(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    said = [[{"role": "assistant", "content": text}] for text in ("好", "坏")]
    row = {"prompt": "写一首诗。", "chosen": said[0], "rejected": said[1]}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "p.parquet")
    (pair,) = read_pairs(tmp_path / "p.parquet")
    assert pair is not None and (pair.prompt, pair.chosen, pair.language) == ("写一首诗。", "好", "zh")
    (tmp_path / "own.jsonl").write_text(json.dumps(pair.row()) + "\n")
    assert list(read_pairs(tmp_path / "own.jsonl")) == [pair]
