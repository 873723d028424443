from __future__ import annotations

import pytest

from megatron_lwz.distributed import environment


def test_a_child_does_not_inherit_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "GROUP_RANK"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    child = environment.child_environment(LWZ_ENGINE_TOKEN="secret")
    assert child["HF_HOME"] == "/somewhere"
    assert child["LWZ_ENGINE_TOKEN"] == "secret"
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"} & set(child)
    assert "TORCHELASTIC_RUN_ID" not in child


def test_without_torchrun_this_is_rank_zero_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert (environment.rank(), environment.world_size(), environment.local_rank()) == (0, 1, 0)
    assert not environment.under_torchrun()
    assert environment.get("LWZ_NO_SUCH_NAME", "default") == "default"
