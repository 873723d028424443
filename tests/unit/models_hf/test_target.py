"""The folder that a conversion writes appears whole or not at all, and nothing else is ever lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_lwz.errors import CheckpointError
from megatron_lwz.file_lock import FileLock
from megatron_lwz.models.hf.target import CHECKPOINT, EXPORT, atomic_folder, check_no_run, check_target
from megatron_lwz.run_paths import RunPaths

EXPORTED = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "reward_model.json")
SHARDED = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
IMPORTED = ("__0_0.distcp", "__1_12.distcp", ".metadata", "metadata.json", "common.pt", "config.yaml", "config.json")


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("old")
    return folder


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def test_failed_write_leaves_the_old_folder_and_no_rubbish(tmp_path: Path) -> None:
    target = fill(tmp_path / "model", *EXPORTED)
    with pytest.raises(OSError, match="disk full"), atomic_folder(target) as folder:
        (folder / "model.safetensors").write_text("half")
        raise OSError("disk full")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (target / "model.safetensors").read_text() == "old"


@pytest.mark.parametrize("before", [(), EXPORTED, SHARDED])
def test_an_earlier_export_is_replaced_whole(tmp_path: Path, before: tuple[str, ...]) -> None:
    target = fill(tmp_path / "model", *before)
    with atomic_folder(target) as folder:
        (folder / "model.safetensors").write_text("new")
    assert contents(tmp_path) == {"model/model.safetensors": "new"}


@pytest.mark.parametrize(
    "foreign", ["thesis.tex", ".git", "notes.safetensors", "model-1-of-2.safetensors", "pytorch_model.bin", "README.md"]
)
@pytest.mark.parametrize(("written", "own"), [(EXPORT, EXPORTED), (CHECKPOINT, IMPORTED)])
def test_a_folder_with_anything_else_in_it_is_not_replaced(tmp_path: Path, written, own, foreign: str) -> None:
    check_target(fill(tmp_path, *own), written)
    fill(tmp_path, foreign)
    with pytest.raises(CheckpointError, match=f"holds {foreign}, which would be lost"):
        check_target(tmp_path, written)


def test_folders_inside_are_foreign_whatever_their_name(tmp_path: Path) -> None:
    fill(tmp_path / "model" / "config.json", "years")
    with pytest.raises(CheckpointError, match=r"holds config\.json"), atomic_folder(tmp_path / "model"):
        pass
    assert contents(tmp_path) == {"model/config.json/years": "old"}


def test_what_is_put_there_during_the_write_stays(tmp_path: Path) -> None:
    target = fill(tmp_path / "model", *EXPORTED)
    with pytest.raises(CheckpointError, match=r"holds thesis\.tex"), atomic_folder(target) as folder:
        (folder / "model.safetensors").write_text("new")
        fill(target, "thesis.tex")
    assert contents(target) == dict.fromkeys((*EXPORTED, "thesis.tex"), "old")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (lambda source: source, "is what is read from"),
        (lambda source: source.parent / "link", "is what is read from"),
        (lambda source: source / ".." / source.name, "is what is read from"),
        (lambda source: source.parent, "holds .*, which is read from"),
        (lambda source: source / "out", "lies inside"),
    ],
    ids=["same", "by a link", "by another path", "above", "inside"],
)
def test_the_source_of_a_conversion_is_never_its_target(
    tmp_path: Path, place: Callable[[Path], Path], words: str
) -> None:
    source = fill(tmp_path / "above" / "model", *EXPORTED)
    (source.parent / "link").symlink_to(source)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        check_target(place(source), EXPORT, [tmp_path / "elsewhere", source], outside=source)
    assert contents(tmp_path) == before


def test_through_a_link_the_folder_behind_it_is_replaced(tmp_path: Path) -> None:
    target = fill(tmp_path / "disk" / "model", *EXPORTED)
    (tmp_path / "link").symlink_to(target)
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "model.safetensors").write_text("new")
    assert contents(target) == {"model.safetensors": "new"} and (tmp_path / "link").is_symlink()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years")
    with pytest.raises(CheckpointError, match="is a file"):
        check_target(tmp_path / "out", EXPORT)


def test_a_folder_that_a_living_run_writes_is_refused(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    check_no_run(run.hf)
    lock = FileLock(run.lock)
    for target in (run.hf, run.root, run.checkpoints / "mine"):
        with pytest.raises(CheckpointError, match=f"lies in .*, which process {os.getpid()} on .* writes: wait for it"):
            check_no_run(target)
    lock.release()
    check_no_run(run.hf)
    assert [path.name for path in tmp_path.iterdir()] == [run.lock.name] and run.lock.read_bytes() == b""
