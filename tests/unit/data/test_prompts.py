import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from megatron_lwz.data.prompts import PromptOrder, read_prompts
from megatron_lwz.errors import DataError
from megatron_lwz.types import LengthRange, Prompt

ROW = {"id": "a", "prompt": "Write.", "length": {"lower": 10, "upper": 20}}


SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return path


def test_reads_all_keys_and_keeps_the_unknown_ones(tmp_path):
    full = {**ROW, "id": 7, "prompt": "写。\u2028第二行", "language": "zh", "template": "direct", "topic": "sea"}
    prompts = read_prompts(write(tmp_path, ROW, "\n", full, {"id": "c", "prompt": "x"}))
    assert prompts[0] == Prompt("a", "Write.", LengthRange(10, 20))
    assert prompts[1] == Prompt("7", "写。\u2028第二行", LengthRange(10, 20), "zh", "direct", {"topic": "sea"})
    assert prompts[2].length is None


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ("{oops\n", "not valid JSON"),
        ("[1]\n", "must be a JSON object, not a list"),
        ({"id": "b", "query": "x"}, 'no "prompt"'),
        ({"id": "", "prompt": "x"}, "'id'"),
        ({"id": 1.5, "prompt": "x"}, "'id'"),
        ({"instruction": "x", "output": "y"}, "this one has instruction, output; lwz prompts"),
        ({"id": "b", "prompt": None}, "'prompt' must be a text or a list of turns"),
        ({"id": "b", "prompt": []}, "one user turn, its turns are: none; lwz prompts"),
        ({"id": "b", "prompt": [{"role": "user", "content": " "}]}, "'prompt' must not be empty"),
        ({"id": "b", "prompt": [SYSTEM, USER]}, "one user turn, its turns are: system, user; lwz prompts"),
        ({"id": "b", "prompt": [USER, {"role": "assistant", "content": "y"}]}, "its turns are: user, assistant"),
        ({"id": "b", "prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "turn 1 of 'prompt' has a part"),
        ({"id": "b", "prompt": {"text": "x"}}, "turn 1 of 'prompt' has no known role"),
        ({"id": "b", "prompt": "x", "system": "Be brief."}, "'system' would be lost"),
        ({"id": "b", "prompt": [USER], "tools": [{"name": "search"}]}, "'tools' would be lost"),
        ({"id": True, "prompt": "x"}, "'id'"),
        ({"id": "b", "prompt": " "}, "'prompt'"),
        ({"id": "b", "prompt": 3}, "'prompt'"),
        ({**ROW, "id": "b", "length": [1, 2]}, "'length'"),
        ({**ROW, "id": "b", "length": {"lower": 1.5, "upper": 2}}, "'length'"),
        ({**ROW, "id": "b", "length": {"lower": True, "upper": 2}}, "'length'"),
        ({**ROW, "id": "b", "length": {"lower": 1, "upper": float("inf")}}, "got {'lower': 1, 'upper': inf}"),
        ({**ROW, "id": "b", "length": {"lower": float("nan"), "upper": 2}}, "got {'lower': nan, 'upper': 2}"),
        ({**ROW, "id": "b", "length": {"min": 1, "max": 2}}, "'length'"),
        ({**ROW, "id": "b", "length": 500}, "'length'"),
        ({**ROW, "id": "b", "length": {"lower": 30, "upper": 20}}, "[30, 20]"),
        ({**ROW, "id": "b", "length": {"lower": -1, "upper": 20}}, "[-1, 20]"),
        ({**ROW, "id": "b", "length": {"lower": 0, "upper": 0}}, "[0, 0]"),
        ({**ROW, "id": "b", "template": "chat"}, "'template'"),
        ({**ROW, "id": "b", "language": 1}, "'language'"),
        (ROW, "already used on line 1"),
    ],
)
def test_a_bad_row_is_one_line_that_names_its_line(tmp_path, bad, part):
    path = write(tmp_path, ROW, "\n", bad)
    with pytest.raises(DataError) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: ") and part in message and "\n" not in message


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "user", "content": "Write.\n写。"}],
        [{"from": "human", "value": "Write.\n写。"}],
        {"role": "user", "content": "Write.\n写。"},
        [{"role": "user", "content": [{"type": "text", "text": "Write."}, {"type": "text", "text": "写。"}]}],
        json.dumps([{"role": "user", "content": "Write.\n写。"}]),
    ],
)
def test_a_message_list_of_one_user_turn_is_its_text(tmp_path, prompt):
    row = {"id": "a", "prompt": prompt, "system": "", "tools": "[]"}
    (found,) = read_prompts(write(tmp_path, row))
    assert found.text == "Write.\n写。"


def test_a_row_without_an_id_is_named_by_its_place(tmp_path):
    rows = [{"prompt": [USER]}, {"prompt": "y", "id": None}, {"prompt": "z", "id": 0}]
    path = write(tmp_path, *rows)
    for _ in range(2):
        assert [prompt.id for prompt in read_prompts(path)] == ["prompts.jsonl:1", "prompts.jsonl:2", "0"]
        path.write_text(json.dumps(rows))


def test_bounds_may_be_whole_floats_and_empty_columns_are_no_range(tmp_path):
    floats, none = {"lower": 500.0, "upper": 1e3}, {"lower": None, "upper": None}
    first, second = read_prompts(write(tmp_path, {**ROW, "length": floats}, {**ROW, "id": "b", "length": none}))
    assert (first.length, second.length) == (LengthRange(500, 1000), None)
    assert type(first.length.lower) is int


def test_dates_of_a_parquet_file_become_texts_and_bytes_are_refused(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    made, path = datetime(2023, 4, 9, 1, 2, 3, tzinfo=UTC), tmp_path / "prompts.parquet"
    row = {"id": 7, "prompt": "x", "made": made, "cost": Decimal("1.50")}
    parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (prompt,) = read_prompts(path)
    assert prompt == Prompt("7", "x", extra={"made": "2023-04-09 01:02:03+00:00", "cost": "1.50"})
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "image": b"\x89PNG"}]), path)
    with pytest.raises(DataError, match=r"prompts\.parquet, row 1: holds bytes"):
        read_prompts(path)


def test_a_range_up_to_l_max_is_refused_with_the_prompt_named(tmp_path):
    path = write(tmp_path, ROW)
    assert read_prompts(path, maximum_length=21)
    with pytest.raises(DataError, match=r"line 1: prompt 'a' asks for up to 20, L_max is 20"):
        read_prompts(path, maximum_length=20)


def test_missing_binary_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is UTF-16"):
        read_prompts(tmp_path / "binary")
    with pytest.raises(DataError, match="no prompts"):
        read_prompts(write(tmp_path, "\n"))


def test_order_visits_every_prompt_once_an_epoch_and_needs_no_state():
    order = PromptOrder(10, seed=3, shuffle=True)
    drawn = [order.index(k) for k in range(30)]
    assert [sorted(drawn[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert drawn[:10] != drawn[10:20]
    assert [PromptOrder(10, seed=3)[k] for k in reversed(range(30))] == drawn[::-1]
    assert [PromptOrder(10, seed=4)[k] for k in range(30)] != drawn
    assert [PromptOrder(3, seed=3, shuffle=False)[k] for k in range(5)] == [0, 1, 2, 0, 1]
