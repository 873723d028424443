"""The order of a push, what happens when an engine fails, and the verdict of verify."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from megatron_lwz.errors import EngineError
from megatron_lwz.training.weight_sync import DiskTransport
from megatron_lwz.types import WeightVersion

VERSION = WeightVersion(7, 1, "abc")


class FakeEngines:
    def __init__(self, *, broken: bool = False, checksum: str = "abc") -> None:
        self.calls: list[str] = []
        self._broken = broken
        self._checksum = checksum

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

    def reload_weights(self, path: Path) -> None:
        if self._broken:
            raise EngineError("http://b", "no space left")
        self.calls.append(f"reload {path.name} {path.is_absolute()}")

    def update_weight_version(self, version: str) -> None:
        self.calls.append(f"version {version}")

    def weight_checksum(self) -> Mapping[str, str]:
        return {"http://a": "abc", "http://b": self._checksum}


def transport(engines: FakeEngines | None) -> DiskTransport:
    return DiskTransport(engines, Path("weights"), chunks=[], config_files_from=None)


def test_push_pauses_reloads_names_the_version_and_resumes() -> None:
    engines = FakeEngines()
    transport(engines).push(VERSION)
    assert engines.calls == ["pause", "reload 7.1 True", "version 7.1.abc", "resume"]


def test_engine_that_cannot_reload_is_resumed_and_keeps_its_version() -> None:
    engines = FakeEngines(broken=True)
    with pytest.raises(EngineError, match="no space left"):
        transport(engines).push(VERSION)
    assert engines.calls == ["pause", "resume"]


def test_verify_names_the_engine_that_differs() -> None:
    transport(FakeEngines()).verify(VERSION)
    with pytest.raises(EngineError, match=r"http://b.*checksum def.*step 7 is abc"):
        transport(FakeEngines(checksum="def")).verify(VERSION)


def test_ranks_without_engines_do_nothing() -> None:
    transport(None).push(VERSION)
    transport(None).verify(VERSION)
