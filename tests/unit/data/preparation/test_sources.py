import gzip
import json
import sys

import pytest

from megatron_lwz.data.preparation.sources import NO_REQUEST, Source, find_files, read_sources
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
    """The requests; the advice of the error in place of a row that has none."""
    return [found.advice if isinstance(found, DataError) else found for found in read_sources(path, column)]


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
         Source("Q", "f.jsonl", asked=(0, 0), after_system=True)),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}]}, Source("Q", "f.jsonl")),
        ({"conversations": [{"from": "human", "value": "Q"}], "lang": "en"}, Source("Q", "f.jsonl", tag="en")),
        ({"conversations": json.dumps([{"from": "human", "value": "Q"}])}, Source("Q", "f.jsonl")),
        ({"messages": [{"role": "User", "content": "Q"}, {"role": "tool", "content": None}]}, Source("Q", "f.jsonl")),
        ({"prompt": "P", "text": "T", "toxic": True}, Source("P", "f.jsonl", flagged=True)),
        ({"instruction": "Sum up.", "input": "A text.", "output": "A"}, Source("Sum up.\n\nA text.", "f.jsonl")),
        ({"prompt": "Q", "context": "Q", "user": "u1"}, Source("Q", "f.jsonl")),
        ({"conversation": None, "prompt": "Q"}, Source("Q", "f.jsonl")),
        ({"text": "T"}, Source("T", "f.jsonl")),
        ({"conversation": [{"role": "assistant", "content": "hello"}]}, NO_REQUEST),
        ({"conversation": "not turns? then it is the request"}, Source("not turns? then it is the request", "f.jsonl")),
        ({"prompt": None, "text": "T"}, NO_REQUEST),
        ({"prompt": "  "}, NO_REQUEST),
        ({"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "turn 1 of 'prompt' has a part that is no text (image_url): only text can be read"),
    ],
)  # fmt: skip
def test_usual_columns(tmp_path, row, expected):
    assert read(jsonl(tmp_path / "f.jsonl", {"prompt": "first"}, row))[1:] == [expected]


def test_lines_that_cannot_be_read_have_a_reason_and_the_others_are_kept(tmp_path):
    path = jsonl(
        tmp_path / "f.jsonl",
        {"prompt": "a"},
        "{oops\n",
        "\n",
        "[1]\n",
        "[" * 100_000 + "\n",
        '{"prompt": "\\ud83d"}\n',
        {"prompt": "b"},
    )
    found = read(path)
    assert [found[0].text, found[-1].text] == ["a", "b"] and len(found) == 6
    for advice, expected in zip(
        found[1:5], ["not valid JSON", "must be a JSON object", "nested too deeply", "half a surrogate"], strict=True
    ):
        assert expected in advice


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (["{oops\n", "[1]\n"], "f.jsonl, line 1: not valid JSON"),
        ([{"prompt": None}, {"prompt": ""}], "f.jsonl, line 1: no request in the row"),
        ([{"prompt": [{"role": "user", "content": 3}]}], "line 1: turn 1 of 'prompt': 'content' must be a text"),
        (["\n"], "f.jsonl: holds no row"),
    ],
)
def test_a_file_without_a_request_is_refused_with_its_first_fault(tmp_path, rows, fault):
    with pytest.raises(DataError) as caught:
        read(jsonl(tmp_path / "f.jsonl", *rows))
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_arrays_gzip_and_folders(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps([{"prompt": "1"}, 7, {"prompt": "2"}]))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8-sig") as file:
        file.write('{"prompt": "0"}\n')
    (tmp_path / "readme.md").write_text("no data")
    (tmp_path / ".cache").mkdir()
    for hidden in ("._a.jsonl", ".cache/c.jsonl"):  # macOS and huggingface_hub make such files
        (tmp_path / hidden).write_bytes(b"\0\5\x16\7")
    files = find_files([tmp_path, tmp_path / "b.json"])
    assert [file.name for file in files] == ["a.jsonl.gz", "b.json", "b.json"]
    texts = [getattr(source, "text", source) for file in files[:2] for source in read(file)]
    assert texts == ["0", "1", "a row must be a JSON object, not a number", "2"]
    named = tmp_path / "b.txt"
    (tmp_path / "b.json").rename(named)
    assert find_files([named]) == [named] and len(read(named)) == 3, "a named file may have any name"


def test_unknown_columns_are_listed_and_one_can_be_named(tmp_path):
    path = jsonl(tmp_path / "f.jsonl", {"ask": "Q", "reply": "A"})
    with pytest.raises(DataError, match=r"none of the columns conversation, .*; present are: ask, reply$"):
        read(path)
    with pytest.raises(DataError, match=r"no column 'asked'; present are: ask, reply$"):
        read(path, "asked")
    assert read(path, "ask")[0].text == "Q"


def test_columns_that_differ_in_case_only_are_an_error_of_the_row(tmp_path):
    rows = {"prompt": "A", "Prompt": "B"}, {"Prompt": "C", "Language": "English"}
    first, second = read(jsonl(tmp_path / "f.jsonl", *rows))
    assert "two columns are named 'prompt'" in str(first) and (second.text, second.tag) == ("C", "English")
    with pytest.raises(DataError, match="two columns are named 'prompt'"):
        read(jsonl(tmp_path / "g.jsonl", rows[0]))
    assert [source.text for source in read(jsonl(tmp_path / "g.jsonl", rows[0]), "Prompt")] == ["B"]


def test_files_that_are_not_there_or_not_text(tmp_path):
    for path, part in [(tmp_path / "none.jsonl", "no such file"), (tmp_path, "no .jsonl")]:
        with pytest.raises(DataError, match=part):
            find_files([path])
    for data, part in {
        b"a,b\n": "not valid JSON",
        b"\xff\xfe\x00": "UTF-16",
        b"\x1f\x8b\x00": "cannot be read",
    }.items():
        (tmp_path / "x.csv").write_bytes(data)
        with pytest.raises(DataError, match=part):
            read(tmp_path / "x.csv")


def test_parquet_without_pyarrow_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
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
