"""Free memory of the machine and of the container."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from megatron_lwz.distributed import host_memory

ROOM = 12345


@pytest.mark.parametrize(("limit", "used"), host_memory._LIMITS)
def test_a_container_may_take_less_than_the_machine_has(
    limit: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "_CONTROL_GROUPS", tmp_path)
    for name, value in ((limit, 10**6 + ROOM), (used, 10**6)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    assert host_memory.free_memory() == ROOM
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert host_memory.share(ROOM / 2) == 2.0


@pytest.mark.parametrize(("used", "names"), [
    ("memory.current", "inactive_file 300\nactive_file 45\n"),
    ("memory/memory.usage_in_bytes", "inactive_file 1\ntotal_inactive_file 300\ntotal_active_file 45\n"),
])  # fmt: skip
def test_files_in_memory_leave_room(used: str, names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_CONTROL_GROUPS", tmp_path)
    limit = {used: limit for limit, used in host_memory._LIMITS}[used]
    (tmp_path / used).parent.mkdir(exist_ok=True)
    for name, value in ((limit, ROOM + 10**6), (used, 10**6)):
        (tmp_path / name).write_text(f"{value}\n")
    ((tmp_path / used).parent / "memory.stat").write_text(f"anon 5\n{names}")
    assert host_memory.free_memory() == ROOM + 345


def test_memory_that_the_library_kept_is_free_again() -> None:
    host_memory.give_back()
    assert host_memory.free_swap() >= 0


def test_without_a_limit_it_is_the_machine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_CONTROL_GROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert 0 < host_memory.free_memory() <= psutil.virtual_memory().total
