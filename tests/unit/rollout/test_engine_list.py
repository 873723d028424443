from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.rollout.engine_list import EngineList


def test_the_file_is_read_when_it_changes(tmp_path: Path):
    path = tmp_path / "engines.txt"
    path.write_text("# our engines\nhttp://a:1/\n\n  http://b:2  # slow\nhttp://a:1\n")
    engines = EngineList(path)
    assert engines.read() == ("http://a:1", "http://b:2") and engines.read() is None
    path.write_text("http://b:2\n")
    os.utime(path, ns=(1, 1))
    assert engines.read() == ("http://b:2",)
    path.write_text("")
    assert engines.read() == ()


def test_a_wrong_line_is_named_once(tmp_path: Path):
    path = tmp_path / "engines.txt"
    path.write_text("http://a:1\nb:2\n")
    engines = EngineList(path)
    with pytest.raises(DataError, match=r"engines\.txt, line 2: 'b:2' is no address"):
        engines.read()
    assert engines.read() is None


def test_the_file_may_begin_with_a_byte_order_mark_and_must_be_utf8(tmp_path: Path):
    path = tmp_path / "engines.txt"
    path.write_bytes(b"\xef\xbb\xbfhttp://a:1\r\nhttp://b:2\r\n")
    assert EngineList(path).read() == ("http://a:1", "http://b:2")
    path.write_bytes("http://a:1\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"engines\.txt, line 1: not UTF-8"):
        EngineList(path).read()


def test_a_file_that_is_gone_is_said(tmp_path: Path):
    with pytest.raises(DataError, match=r"rollout\.engines_file cannot be read \(No such file"):
        EngineList(tmp_path / "nowhere").read()
