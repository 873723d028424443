from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import environment, groups, launch, platform
from megatron_lwz.distributed.launch import initialize, shutdown
from megatron_lwz.errors import ConfigError, LwzError
from tests.support import stages, warm
from tests.support.paths import ROOT

ARCHITECTURE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
}


def _config(**parallel: int) -> Config:
    return validate({"model": {"architecture": ARCHITECTURE}, "parallel": parallel})


def test_a_layout_that_does_not_fit_the_ranks_is_refused_before_any_group_exists() -> None:
    with pytest.raises(ConfigError, match="must divide the 1 ranks"):
        initialize(_config(tensor=2))
    assert not dist.is_initialized()


def test_one_process_runs_without_torchrun_and_can_start_again() -> None:
    for _ in range(2):
        initialize(_config())
        assert (groups.tensor_size(), groups.pipeline_size(), groups.context_size(), groups.data_size()) == (1, 1, 1, 1)
        assert groups.is_first_stage()
        assert groups.is_last_stage()
        assert groups.is_rank_zero()
        shutdown()
        shutdown()
    assert not dist.is_initialized()


def test_another_layout_ends_the_groups_of_the_one_before() -> None:
    """Also those that a model of it still holds, which is garbage that refers to itself."""
    threads = []
    gc.disable()
    try:
        for _ in range(3):
            initialize(_config())
            threads.append(sum(1 for _ in Path("/proc/self/task").iterdir()))
            model: dict[str, object] = {"group": groups.tensor_group()}
            model["self"] = model
            del model
    finally:
        gc.enable()
    shutdown()
    assert threads == threads[:1] * 3  # each gloo group polls in a thread of its own


def test_ranks_that_torchrun_restarts_meet_again(tmp_path: Path) -> None:
    """Torchrun keeps the store of the first start, which holds the addresses of the ranks that ended."""
    module = ["-m", "tests.support.restarted_ranks", str(tmp_path)]
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        "--monitor-interval",
        "0.1",
    ]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    line = [sys.executable, *torchrun, *rendezvous, *module]
    done = warm.run(line, cwd=ROOT, env=stages.variables(), timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["restart 1 of 2 ranks"] * 2


def test_ranks_restarted_on_several_machines_need_a_store_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "RANK": "0", "WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "1",
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LwzError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        initialize(_config())
    assert not dist.is_initialized()


def test_the_seed_repeats_every_generator() -> None:
    draws = []
    for _ in range(2):
        initialize(_config())
        draws.append(torch.rand(4))
        shutdown()
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("parallel", "capability", "before", "expected"),
    [
        ({"tensor": 2}, (9, 0), None, "1"),
        ({"context": 2}, (8, 0), None, "1"),
        ({"tensor": 2}, (9, 0), "8", "8"),  # the user's choice
        ({"tensor": 2}, (10, 0), None, None),
        ({}, (9, 0), None, None),
    ],
)
def test_one_hardware_queue_where_megatron_needs_it_before_there_is_a_cuda_context(
    monkeypatch: pytest.MonkeyPatch,
    parallel: dict[str, int],
    capability: tuple[int, int],
    before: str | None,
    expected: str | None,
) -> None:
    class Joining(Exception):
        pass

    def join(_: object) -> None:
        raise Joining

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(launch.QUEUES, before or "")
    if before is None:
        monkeypatch.delenv(launch.QUEUES)
    monkeypatch.setattr(platform, "has_gpu", lambda: True)
    monkeypatch.setattr(platform, "install", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(launch, "_join", join)
    with pytest.raises(Joining):
        initialize(_config(**parallel))
    assert environment.get(launch.QUEUES) == expected
