import gzip
import json
import sys

import pytest

from megatron_lwz.data.preparation.sources import Source, find_files, read_sources
from megatron_lwz.errors import DataError, EnvironmentSetupError

WILDCHAT = {
    "conversation_hash": "c1",
    "model": "gpt-4",
    "conversation": [
        {"content": " Write a story. ", "role": "user", "language": "English", "toxic": False},
        {"content": "Once", "role": "assistant"},
        {"content": "Longer.", "role": "user"},
    ],
    "turn": 2,
    "language": "English",
    "openai_moderation": [{"flagged": False}, {"flagged": True}],
    "toxic": False,
    "redacted": False,
}
LMSYS = {
    "conversation_id": "7f",
    "conversation": [{"role": "user", "content": "写一篇作文"}, {"role": "assistant", "content": "好"}],
    "language": "Chinese",
    "openai_moderation": [{"flagged": True}],
}


def jsonl(path, *rows):
    text = "".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def read(path, column=None):
    return list(read_sources(path, column))


def test_wildchat_and_lmsys_give_the_first_turn_of_the_user(tmp_path):
    found = read(jsonl(tmp_path / "w.jsonl", WILDCHAT)) + read(jsonl(tmp_path / "l.jsonl", LMSYS))
    assert found == [
        Source("Write a story.", "w.jsonl", "c1", "English"),
        Source("写一篇作文", "l.jsonl", "7f", "Chinese", flagged=True),
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"query": "Q"}, Source("Q", "f.jsonl")),
        ({"idx": 3, "question": "Q", "answer": "A", "length": 200}, Source("Q", "f.jsonl", "3")),
        ({"instruction": "Q", "length": {"lower": 900, "upper": 1100}}, Source("Q", "f.jsonl", asked=(900, 1100))),
        ({"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}], "range": [0, 0]},
         Source("Q", "f.jsonl", asked=(0, 0))),
        ({"conversations": [{"from": "human", "value": "Q"}], "lang": "en"}, Source("Q", "f.jsonl", tag="en")),
        ({"prompt": "P", "text": "T", "toxic": True}, Source("P", "f.jsonl", flagged=True)),
        ({"conversation": [{"role": "assistant", "content": "hello"}]}, None),
        ({"conversation": "not turns? then it is the request"}, Source("not turns? then it is the request", "f.jsonl")),
        ({"prompt": None}, None),
        ({"prompt": "  "}, None),
    ],
)  # fmt: skip
def test_usual_columns(tmp_path, row, expected):
    assert read(jsonl(tmp_path / "f.jsonl", row)) == [expected]


def test_lines_that_are_no_object_are_rows_without_a_request(tmp_path):
    path = jsonl(tmp_path / "f.jsonl", {"prompt": "a"}, "{oops\n", "\n", "[1]\n", "[" * 100_000 + "\n", {"prompt": "b"})
    assert [source and source.text for source in read(path)] == ["a", None, None, None, "b"]


def test_arrays_gzip_and_folders(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps([{"prompt": "1"}, 7, {"prompt": "2"}]))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"prompt": "0"}\n')
    (tmp_path / "readme.md").write_text("no data")
    files = find_files([tmp_path, tmp_path / "b.json"])
    assert [file.name for file in files] == ["a.jsonl.gz", "b.json", "b.json"]
    assert [source and source.text for file in files[:2] for source in read(file)] == ["0", "1", None, "2"]


def test_unknown_columns_are_listed_and_one_can_be_named(tmp_path):
    path = jsonl(tmp_path / "f.jsonl", {"ask": "Q", "reply": "A"})
    with pytest.raises(DataError, match=r"none of the columns conversation, .*; present are: ask, reply$"):
        read(path)
    with pytest.raises(DataError, match=r"no column 'asked'; present are: ask, reply$"):
        read(path, "asked")
    assert read(path, "ask")[0].text == "Q"


def test_files_that_are_not_there_or_not_text(tmp_path):
    for path, part in [(tmp_path / "none.jsonl", "no such file"), (tmp_path, "no .jsonl")]:
        with pytest.raises(DataError, match=part):
            find_files([path])
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match="must end in"):
        find_files([tmp_path / "x.csv"])
    for name in ("x.jsonl", "x.jsonl.gz"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / name)


def test_parquet_without_pyarrow_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentSetupError, match=r"pyarrow.*pip install 'megatron-lwz\[data\]'") as caught:
        read(tmp_path / "x.parquet")
    assert "\n" not in str(caught.value)


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [WILDCHAT | {"conversation_hash": str(number)} for number in range(600)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "train-00000.parquet")
    found = read(tmp_path / "train-00000.parquet")
    assert len(found) == 600
    assert found[599] == Source("Write a story.", "train-00000.parquet", "599", "English")
    parquet.write_table(arrow.Table.from_pylist([{"ask": "Q"}]), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"present are: ask$"):
        read(tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match="not a Parquet file"):
        read(tmp_path / "broken.parquet")
