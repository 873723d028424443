"""Reading of files that people give us: every encoding and shape is read, or refused with file and line."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_lwz import reading
from megatron_lwz.errors import DataError
from megatron_lwz.reading import (
    parse_json,
    parse_row,
    read_json,
    read_object,
    read_rows,
    read_text,
    scan_rows,
    shape_of,
)

ROWS = [{"text": "one"}, {"text": "zwei – 二"}, {"text": "three\u2028still three"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=1)


@pytest.mark.parametrize(
    ("data", "numbers"),
    [
        (LINES.encode(), [1, 2, 3]),
        (b"\xef\xbb\xbf" + LINES.encode(), [1, 2, 3]),
        (LINES.replace("\n", "\r\n").encode(), [1, 2, 3]),
        (b"\n \n" + LINES.replace("\n", "\n\n").encode(), [3, 5, 7]),
        (LINES.rstrip().encode(), [1, 2, 3]),
        (gzip.compress(LINES.encode(), mtime=0), [1, 2, 3]),
        (ARRAY.encode(), [2, 5, 8]),
        (b"\xef\xbb\xbf\n" + ARRAY.encode(), [3, 6, 9]),
        (gzip.compress(b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), mtime=0), [1, 1, 1]),
    ],
    ids=["lines", "mark", "crlf", "blank", "no end", "gzip", "array", "array with mark", "array in gzip"],
)
def test_rows_are_the_same_in_every_form_whatever_the_name(tmp_path: Path, data: bytes, numbers: list[int]) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(data)
    found = list(read_rows(path))
    assert [row.value for row in found] == ROWS
    assert [row.number for row in found] == numbers
    identities = [row.identity for row in found]
    assert len(set(identities)) == 3, "elements of an array may share a line"
    assert identities == [f"rows.txt:{number}" for number in (numbers if found[0].place is None else (1, 2, 3))]


def test_parquet_rows_have_numbers_and_only_the_chosen_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row | {"rest": 1} for row in ROWS]), path)
    found = list(scan_rows(path, columns=lambda present: [name for name in present if name == "text"]))
    assert [row.value for row in found if isinstance(row, reading.Row)] == ROWS
    assert str(found[1].error("bad")) == f"{path}, row 2: bad"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1}\n{"a": \n', "line 2: not valid JSON (Expecting value, column 7)"),
        (b'{"a": 1}\n[1]\n', "line 2: a row must be a JSON object, not a list"),
        (b'{"a": "x\xff"}\n', "line 1: not UTF-8 (byte 0xff invalid start byte): convert the file to UTF-8"),
        (b'{"a": "\\ud83d"}\n', "line 1: 'a' holds half a surrogate pair, which is no character: remove it"),
        (b'{"a": [{"b": "\\ude00!"}]}\n', "line 1: 'a[0].b' holds half a surrogate pair"),
        (b'{"\\ud83d": 1}\n', "line 1: a key holds half a surrogate pair"),
        (b'{"a": ' + b"[" * 200_000 + b"\n", "line 1: JSON is nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}\n", "line 1: not valid JSON (Exceeds the limit"),
        (b'{\n "a": 1\n}\n', "line 1: one object over several lines: give one object per line, or an array"),
        (b'[{"a": 1}\n {"a": 2}]', "line 1: not valid JSON (no ',' or ']' after this element of the array)"),
        (b'[{"a": 1},\n {"a": }]', "line 2: not valid JSON (Expecting value, column 8)"),
        (b'[{"a": 1},\n]', "line 2: not valid JSON (Expecting value, column 1)"),
        (b'[{"a": 1}', "line 1: not valid JSON (no ',' or ']'"),
        (b'[{"a": 1}]\n[{"a": 2}]', "line 1: not valid JSON (something follows the array)"),
        (b'[{"a": 1},\n{"a": "\\ud83d"}]', "line 2: 'a' holds half a surrogate pair"),
        (b'[{"a": 1},\n"x"]', "line 2: a row must be a JSON object, not a text"),
        ("[".encode("utf-16"), "is UTF-16, not UTF-8: convert it"),
        (gzip.compress(LINES.encode(), mtime=0)[:30], "cannot be read ("),
        (b"PAR1 and then something else", "not a Parquet file ("),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert said in str(caught.value) and str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_whole_emoji_in_escapes_is_no_half_pair(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00", "b": "\\\\ud83d"}\n', encoding="utf-8")
    assert next(read_rows(path)).value == {"a": "😀", "b": "\\ud83d"}


def test_a_scan_goes_on_after_a_row_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"\n{"a": "\xff"}\n3\n{"a": 2}\n')
    found = list(scan_rows(path))
    assert [row.value["a"] for row in found if isinstance(row, reading.Row)] == [1, 2]
    assert [str(e).split(": ")[0][-6:] for e in found if isinstance(e, DataError)] == ["line 2", "line 3", "line 4"]


def test_nesting_is_bounded_and_brackets_in_texts_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    deepest = {"a": "[{" * 300, "b": json.loads("[" * 99 + "1" + "]" * 99)}
    path.write_text(json.dumps(deepest) + "\n", encoding="utf-8")
    assert next(read_rows(path)).value == deepest
    for text in ('{"a": ' + "[" * 100 + "]" * 100 + "}", '[{"a":\n' + '{"b":' * 100 + "1" + "}" * 101 + "]"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="line 1: JSON is nested too deeply: at most 100 levels"):
            list(read_rows(path))


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for data in (LINES.encode(), gzip.compress(ARRAY.encode(), mtime=0)):
        writer = threading.Thread(target=path.write_bytes, args=(data,))
        writer.start()
        assert [row.value for row in read_rows(path)] == ROWS
        writer.join()


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (b"\xef\xbb\xbf\n [", "array"),
        (b"\xef\xbb\xbf\n {", "lines"),
        (b"", "lines"),
        (b"PAR1", "parquet"),
        (gzip.compress(b"[", mtime=0), "gzip"),
    ],
)
def test_the_first_bytes_decide_about_the_shape(tmp_path: Path, data: bytes, shape: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    assert shape_of(path) == shape


def test_a_row_of_a_byte_range_is_named_by_its_offset(tmp_path: Path) -> None:
    for data in (b"{", b"[1]", b'{"a": 1', b"\xff", b'{"a": "\\ud83d"}', b"[" * 100_000):
        assert str(parse_row(data, tmp_path, 70, "byte")).startswith(f"{tmp_path}, byte 70: ")
    assert parse_row(b" \r\n", tmp_path, 70) is None


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 40)
    monkeypatch.setattr(reading, "MAX_DOCUMENT_BYTES", 60)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + json.dumps({"a": "x" * 40}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2: is longer than"):
        list(read_rows(path))
    path.write_text(json.dumps([{"a": "x" * 10}] * 5, indent=1), encoding="utf-8")
    with pytest.raises(DataError, match="a JSON array of more than"):
        list(read_rows(path))
    with pytest.raises(DataError, match="is larger than"):
        read_text(path)


def test_documents_lose_their_mark_and_name_their_fault(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(path) == "one\ntwo\nthree\n"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_text(path) == '{"a": 1}' and read_json(path) == read_object(path) == {"a": 1}
    path.write_bytes(b"[1]")
    with pytest.raises(DataError, match="must hold a JSON object, not a list"):
        read_object(path)
    path.write_bytes(b'{"a":\n}')
    with pytest.raises(DataError, match=r"not valid JSON \(Expecting value, line 2, column 1\)"):
        read_object(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_text(tmp_path)
    with pytest.raises(DataError, match="/dev/zero: is a device: name a file"):
        read_text("/dev/zero")  # it has no end
    with pytest.raises(DataError, match="nested too deeply"):
        parse_json("[" * 200_000, "reply")
