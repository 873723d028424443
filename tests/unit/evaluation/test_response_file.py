"""A response file goes on from what it holds; files of other origin, and side files that are damaged, are left as they are."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.partial import Partial
from megatron_lwz.evaluation.response_file import ResponseFile
from megatron_lwz.evaluation.tasks import Task
from tests.support.files import stamps

TASKS = [Task(str(n), f"Task {n}", None, {}) for n in range(3)]
SETTINGS = {"model": "m", "seed": 0}
ROW = {"id": "0", "sample": 0, "prompt": "Task 0", "response": "text"}
LINE = json.dumps(ROW).encode()


def opened(path: Path) -> set[tuple[str, int]]:
    with ResponseFile(path, TASKS, SETTINGS) as file:
        return set(file.done)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A response file with one row."""
    with ResponseFile(tmp_path / "r.jsonl", TASKS, SETTINGS) as file:
        file.add(("0", 0), ROW)
    return tmp_path / "r.jsonl"


@pytest.mark.parametrize(
    "before",
    [
        b"\xef\xbb\xbf" + LINE + b"\r\n",
        b"\n" + LINE + b"\n\n",
        LINE,  # an editor may remove the last line end
        LINE + b'\n{"id": "1", "response": "half a l',
        LINE + b"\n\xe5\xb1",
    ],
    ids=["mark and carriage return", "blank lines", "no last line end", "torn", "torn in a character"],
)
def test_the_rows_that_stand_there_stay_and_the_next_has_its_own_line(path: Path, before: bytes) -> None:
    path.write_bytes(before)
    with ResponseFile(path, TASKS, SETTINGS) as file:
        assert file.done == {("0", 0)}
        file.add(("1", 0), ROW | {"id": "1", "prompt": "Task 1"})
    assert path.read_bytes().startswith(before[: before.index(LINE) + len(LINE)])
    assert opened(path) == {("0", 0), ("1", 0)}


@pytest.mark.parametrize(
    "data",
    [b"[" + LINE + b"]", gzip.compress(LINE + b"\n", mtime=0), LINE, b"notes without a line end", b"\xff\xfe{\x00"],
    ids=["array", "gzip", "rows", "text", "UTF-16"],
)
def test_a_file_of_other_origin_is_refused_and_not_changed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"r\.jsonl: has no r\.jsonl\.settings\.json beside it.*choose another"):
        opened(path)
    assert path.read_bytes() == data and [file.name for file in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[" + LINE + b"]", "is not JSON lines"),
        (gzip.compress(LINE + b"\n", mtime=0), "is not JSON lines"),
        (LINE.decode().encode("utf-16"), "is UTF-16"),
        (LINE + b'\n{"id": [1]}\n', "line 2: 'id' must be"),
        (LINE + b'\n{"id": 1, "sample": []}\n', "line 2: 'sample' must be"),
        (LINE + b'\n{"a": "\\ud83d"}\n', "line 2: 'a' holds half a surrogate pair"),
        (LINE + b'\n{"a": ' + b"[" * 100_000 + b"\n", "line 2: JSON is nested too deeply"),
    ],
)
def test_what_no_longer_is_a_response_file_is_refused_and_not_changed(path: Path, data: bytes, said: str) -> None:
    path.write_bytes(data)
    with pytest.raises(DataError, match=said):
        opened(path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("settings", [b"[1]", b"{", b"\xff\xfe{", b'{"a": ' + b"[" * 100_000])
def test_settings_that_cannot_be_read_are_said(path: Path, settings: bytes) -> None:
    side = path.with_name("r.jsonl.settings.json")
    side.write_bytes(b"\xef\xbb\xbf" + side.read_bytes())
    assert opened(path) == {("0", 0)}
    side.write_bytes(settings)
    with pytest.raises(DataError, match=r"settings\.json: .*; so it is unknown how"):
        opened(path)


def test_unfinished_responses_are_read_with_a_byte_order_mark_and_refused_when_damaged(path: Path) -> None:
    with ResponseFile(path, TASKS, SETTINGS) as file:
        file.partials.add(("1", 0), "be", 1)
        file.partials.flush()
        file.partials.add(("1", 0), "gin", 2)
    side = path.with_name("r.jsonl.partial.jsonl")
    whole = b"\xef\xbb\xbf" + side.read_bytes()
    side.write_bytes(whole)
    with ResponseFile(path, TASKS, SETTINGS) as file:
        assert file.partials.get(("1", 0)) == Partial("begin", 3)
    for line in (
        b"[" * 100_000,
        b'{"id": "1", "sample": 0, "text": "\\ud83d", "tokens": 1}',
        b'{"id": "1", "sample": 0, "text": 3, "tokens": 1}',
        b'{"id": "1", "sample": 0, "text": "a", "tokens": Infinity}',
        b'{"id": "1", "sample": 0, "text": "\xff", "tokens": 1}',
        b"",
    ):
        side.write_bytes(whole + line + b"\n")
        with pytest.raises(DataError, match=r"partial\.jsonl, line \d+: damaged .*: remove it") as caught:
            opened(path)
        assert "\n" not in str(caught.value)


def test_a_second_writer_is_told_who_writes_and_changes_nothing(path: Path) -> None:
    with ResponseFile(path, TASKS, SETTINGS) as file:
        before = stamps(path.parent)
        with pytest.raises(DataError, match=f"process {os.getpid()} on .* writes this file: wait for it, or end it"):
            opened(path)
        assert stamps(path.parent) == before
        file.add(("1", 0), ROW | {"id": "1", "prompt": "Task 1"})
    assert opened(path) == {("0", 0), ("1", 0)}
    assert sorted(stamps(path.parent)) == ["r.jsonl", "r.jsonl.settings.json"]


def test_a_new_file_that_cannot_be_used_is_not_left(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl.partial.jsonl").write_text("[1]\n[2]\n")
    with pytest.raises(DataError):
        opened(tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists() and not (tmp_path / "r.jsonl.lock").exists()
