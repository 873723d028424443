"""The YAML of a corpus, its manifest, and text files in other encodings: read as people write them, or refused in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_lwz.data.corpora import units
from megatron_lwz.data.corpora.spec import SourceSpec, find_files, read_spec
from megatron_lwz.data.manifest import is_manifest, read_manifest
from megatron_lwz.errors import DataError

SPEC = "tokenizer: tokenizer\nsources:\n  - {name: a, paths: [a.jsonl]}\n"


@pytest.mark.parametrize("data", [SPEC.encode(), b"\xef\xbb\xbf" + SPEC.replace("\n", "\r\n").encode()])
def test_a_spec_may_begin_with_a_byte_order_mark(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "spec.yaml").write_bytes(data)
    spec = read_spec(tmp_path / "spec.yaml")
    assert spec.sources[0].paths == (str(tmp_path / "a.jsonl"),)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"tokenizer: caf\xe9\n", "line 1: not UTF-8"),
        (SPEC.encode("utf-16"), "not UTF-8"),
        (b"- a\n", "the file = "),
        (b"", "the file = None"),
        (b"tokenizer: 2020-13-45\n", "cannot be read"),
        (b"tokenizer: " + b"[" * 5000, "cannot be read"),
        (b"tokenizer: [\n", "cannot be read"),
        (b'tokenizer: "' + b"x" * 5000 + b'"\nsources: 3\n', "sources = 3"),
        (b"tokenizer: [" + b"x, " * 5000 + b"]\nsources: []\n", "tokenizer = "),
    ],
)
def test_a_spec_that_is_none_is_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "spec.yaml").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_spec(tmp_path / "spec.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_rows_are_known_by_the_name_of_a_file_but_not_looked_for_in_folders_of_json(tmp_path: Path, name: str) -> None:
    for file in (name, "._b.jsonl"):  # macOS makes such files beside the others
        (tmp_path / file).write_text("")
    source = SourceSpec(name="a", paths=(str(tmp_path / name),))
    assert find_files(source) == ("jsonl", [tmp_path / name])
    folder = SourceSpec(name="a", paths=(str(tmp_path),), format="jsonl")
    if ".jsonl" in name:
        assert find_files(folder) == ("jsonl", [tmp_path / name])
    else:
        with pytest.raises(DataError, match=r"no \.jsonl or \.jsonl\.gz files"):
            find_files(folder)


@pytest.mark.parametrize(
    ("encoding", "data", "found"),
    [
        ("utf-8", b"\xef\xbb\xbfone\r\ntwo", "one\ntwo"),
        ("UTF_8", b"one\rtwo", "one\ntwo"),
        ("utf-16", "\ufeffone".encode("utf-16-le"), "one"),
        ("gb18030", "山水".encode("gb18030"), "山水"),
        ("utf-8", b"a\ncaf\xe9", "line 2: not UTF-8"),
        ("utf-16", b"odd", "cannot be read as utf-16"),
        ("latin-7b", b"a", "cannot be read as latin-7b"),
        ("utf-7", b"+2D0-", "cannot be read as utf-7"),
    ],
)
def test_text_files_are_read_in_their_encoding(tmp_path: Path, encoding: str, data: bytes, found: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    source = SourceSpec(name="a", paths=("a.txt",), encoding=encoding)
    (text,) = units.read(units.Unit(0, "text", (str(tmp_path / "a.txt"),)), source)
    if isinstance(text, DataError):
        assert found in str(text) and "\n" not in str(text)
    else:
        assert text == found


def test_rows_of_later_row_groups_keep_their_numbers(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path, source = tmp_path / "a.jsonl", SourceSpec(name="a", paths=("a",))
    texts = [*"abcdefg", None]
    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=3)
    cut = list(units.cut(0, "jsonl", [path], 1))
    assert [(unit.format, unit.start, unit.stop) for unit in cut] == [("parquet", n, n + 1) for n in range(3)]
    found = [text for unit in cut for text in units.read(unit, source)]
    assert found[:7] == texts[:7]
    assert str(found[7]) == f"{path}, row 8: needs a string under the key 'text'"


def test_rows_in_a_json_file_are_no_manifest_and_a_manifest_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    assert is_manifest(str(tmp_path)) and is_manifest(str(path)) and not is_manifest(str(tmp_path / "a.jsonl"))
    for rows in ('[\n {"text": "a"}]', '{"text": "a"}\n{"text": "b"}\n'):
        path.write_text(rows)
        assert not is_manifest(str(path))
    for data, said in (
        (b"\xef\xbb\xbf" + json.dumps({"format": "other"}).encode(), "not a manifest .*: format"),
        (b"{}", "not a manifest"),
        (b"[" * 5000, "not a manifest"),
        (b"\xff\xfe{", "not UTF-8"),
    ):
        path.write_bytes(data)
        assert is_manifest(str(path))
        with pytest.raises(DataError, match=said) as caught:
            read_manifest(path)
        assert "\n" not in str(caught.value)
