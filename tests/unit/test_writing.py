"""Files are written whole or not at all, and a disk that refuses is one line that names the file."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_lwz.errors import FileSystemError
from megatron_lwz.evaluation.pinned import PinnedEvaluations
from megatron_lwz.metrics import MetricsWriter, read_metrics
from megatron_lwz.models.hf.target import drop_unfinished
from megatron_lwz.training.attempts import append_attempt
from megatron_lwz.types import WeightVersion
from megatron_lwz.writing import naming, replacing, write_text


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the form of a full disk that needs no root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")
    with (
        pytest.raises(FileSystemError, match=r"file: cannot be written \(File too large\).*same command"),
        files_up_to(50),
    ):
        write_text(path, "x" * 100)
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "before")]


def test_the_file_at_fault_is_named_not_another(tmp_path: Path) -> None:
    with (
        pytest.raises(FileSystemError, match=f"{tmp_path}/x: cannot be written .*make room on its disk"),
        naming(tmp_path / "x"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), naming(tmp_path / "run" / "x"):
        (tmp_path / "other" / "y").read_bytes()


def test_rows_and_starts_go_on_after_a_full_disk(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    append_attempt(tmp_path / "attempts.jsonl", 0, {})
    attempts, (events,) = tmp_path / "attempts.jsonl", (tmp_path / "tensorboard").iterdir()
    for file, limit, work in (
        (tmp_path / "metrics.jsonl", 35, lambda: writer.write(2, {"loss": 2.0})),
        (attempts, attempts.stat().st_size + 7, lambda: append_attempt(attempts, 0, {})),
        (events, events.stat().st_size + 5, lambda: writer.write(2, {"loss": 2.0})),
    ):
        if file == events:
            (tmp_path / "metrics.jsonl").unlink()  # its rows are shorter than the events
        with pytest.raises(FileSystemError, match=f"{file}: cannot be written"), files_up_to(limit):
            work()
    (tmp_path / "metrics.jsonl").unlink()
    again = MetricsWriter(tmp_path)
    again.write(1, {"loss": 1.0})
    again.write(2, {"loss": 2.0})
    again.close(1.0)
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0]
    assert append_attempt(tmp_path / "attempts.jsonl", 0, {}) == 1


def test_what_a_full_disk_cut_off_is_dropped(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"loss": 1.0})
    with pytest.raises(FileSystemError), files_up_to(40):
        writer.write(2, {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").stat().st_size == 40
    again = MetricsWriter(tmp_path, tensorboard=False)
    again.write(2, {"loss": 3.0})
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 3.0]


def test_weights_of_an_evaluation_are_kept_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("a", "b"):
        (weights / name).write_bytes(bytes(100))
    pinned = PinnedEvaluations(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(FileSystemError, match="step_00000003: cannot be written"), files_up_to(50):
        pinned.begin(WeightVersion(3), weights)
    assert list((tmp_path / "evaluation").iterdir()) == []
    (tmp_path / "evaluation" / ".step_00000002.tmp").mkdir()  # by a kill
    assert pinned.begun() == []
    assert pinned.begin(WeightVersion(3), weights).weights is not None
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["step_00000003", "step_00000003.json"]


def test_exports_that_a_kill_left_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".hf.17.tmp", ".hf.17.old", ".hf.x.tmp", ".other.17.tmp", "hf"):
        (tmp_path / name).mkdir()
    drop_unfinished(tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hf.x.tmp", ".other.17.tmp", "hf"]
