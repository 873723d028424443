"""The order of a push, what happens when an engine fails, and the verdict of verify."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from megatron_lwz.errors import EngineError
from megatron_lwz.training.weight_sync import DiskTransport
from megatron_lwz.types import WeightVersion

VERSION = WeightVersion(7, 1, "abc")


class FakeEngines:
    def __init__(self, *, checksum: str = "abc") -> None:
        self.calls: list[str] = []
        self._checksum = checksum

    def push_weights(self, path: Path, version: WeightVersion) -> None:
        self.calls.append(f"{path.name} {path.is_absolute()} {version}")

    def weight_checksum(self) -> Mapping[str, str]:
        return {"http://a": "abc", "http://b": self._checksum}


def transport(engines: FakeEngines | None) -> DiskTransport:
    return DiskTransport(engines, Path("weights"), chunks=[], config_files_from=None)


def test_push_hands_over_the_folder_and_its_version() -> None:
    engines = FakeEngines()
    transport(engines).push(VERSION)
    assert engines.calls == ["7.1 True 7.1.abc"]


def test_verify_names_the_engine_that_differs() -> None:
    transport(FakeEngines()).verify(VERSION)
    with pytest.raises(EngineError, match=r"http://b.*checksum def.*step 7 is abc"):
        transport(FakeEngines(checksum="def")).verify(VERSION)


def test_ranks_without_engines_do_nothing() -> None:
    transport(None).push(VERSION)
    transport(None).verify(VERSION)


def test_only_old_versions_are_deleted(tmp_path: Path) -> None:
    names = ["1.0", "2.0", "3.1", ".2.0.77.tmp", ".1.0.77.old", "mine", "3.1 copy", ".git"]
    for age, name in enumerate(names):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "4.0").write_text("a file")
    DiskTransport(None, tmp_path, chunks=[], config_files_from=None)._drop_old(keep=tmp_path / "3.1")
    assert {path.name for path in tmp_path.iterdir()} == {"2.0", "3.1", "mine", "3.1 copy", ".git", "4.0"}
