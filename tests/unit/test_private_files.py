from __future__ import annotations

import os

import pytest

from megatron_lwz.private_files import make_private
from megatron_lwz.rewards.judge_cache import ReplyCache
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.writing import write_text


@pytest.fixture(autouse=True)
def open_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o777


def test_new_files_are_their_owners_alone_and_old_ones_keep_their_mode(tmp_path):
    path, temporary = tmp_path / "a", tmp_path / "b"
    make_private(path)
    assert mode(path) == 0o600 and path.read_bytes() == b""
    path.write_text("kept")
    path.chmod(0o640)
    make_private(path)
    make_private(temporary, replaces=path)
    assert (path.read_text(), mode(path), mode(temporary)) == ("kept", 0o640, 0o640)
    make_private(tmp_path / "missing" / "c")  # the writer names the fault
    write_text(tmp_path / "page.html", "text", private=True)
    assert mode(tmp_path / "page.html") == 0o600
    (tmp_path / "page.html").chmod(0o644)
    write_text(tmp_path / "page.html", "more")
    assert mode(tmp_path / "page.html") == 0o644 and (tmp_path / "page.html").read_text() == "more"


def test_journal_and_judge_cache_with_their_side_files(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    journal.snapshot(tmp_path / "copy.sqlite")
    ReplyCache(tmp_path / "judge.sqlite").get("key")
    files = {path.name: mode(path) for path in tmp_path.iterdir() if "sqlite" in path.name and "lock" not in path.name}
    journal.close()
    assert len(files) >= 4 and set(files.values()) == {0o600}, files
