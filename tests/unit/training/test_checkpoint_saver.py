"""Checkpoints written while training goes on: of one moment, complete or absent, the newest kept, failures said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_lwz.distributed import host_memory, launch
from megatron_lwz.errors import CheckpointError, OutOfMemory
from megatron_lwz.run_paths import BEST, LATEST
from megatron_lwz.training.checkpoint import latest, load_checkpoint
from megatron_lwz.training.checkpoint_saver import CheckpointSaver
from megatron_lwz.training.checkpoint_writer import Snapshot
from tests.support.waiting import wait_for
from tests.unit.training.tiny_state import config_of, live_tensors, state_of


@pytest.fixture(autouse=True, scope="module")
def groups() -> Iterator[None]:
    yield
    launch.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("asynchronous", "precision", "distributed"),
    [
        (True, "fp32", True),
        (True, "fp32", False),
        (True, "bf16", True),
        (True, "bf16", False),
        (False, "fp32", True),
    ],
)
def test_a_checkpoint_holds_the_moment_of_the_save(
    tmp_path: Path, asynchronous: bool, precision: str, distributed: bool
) -> None:
    torch.manual_seed(0)
    config = config_of(asynchronous=asynchronous, precision=precision, distributed_optimizer=distributed)
    state = state_of(config)
    for number, tensor in enumerate(live_tensors(state)):  # every value of its own
        torch.nn.init.normal_(tensor, number) if tensor.dim() else tensor.fill_(3.0)
    before = [tensor.clone() for tensor in live_tensors(state)]
    state.step, complete = 3, []
    with CheckpointSaver(state, tmp_path, complete.append) as saver:
        saver.save({"cursor": 5})
        for tensor in live_tensors(state):
            tensor.fill_(-1.0)
    assert complete == [3]
    other = state_of(config)
    assert load_checkpoint(other, tmp_path / "step_00000003") == {"cursor": 5} and other.step == 3
    assert all(torch.equal(a, b) for a, b in zip(live_tensors(other), before, strict=True))


def test_the_newest_stay_and_the_best(tmp_path: Path) -> None:
    state = state_of(config_of())
    (tmp_path / ".step_00000009.tmp").mkdir()  # a kill left it
    (tmp_path / "step_00000008").mkdir()  # of a time that the run went back from
    (tmp_path / "step_00000001_good").mkdir()  # somebody's own
    with CheckpointSaver(state, tmp_path) as saver:
        for state.step in range(1, 6):
            saver.save({})
            saver.wait()
            if state.step == 2:
                (tmp_path / BEST).write_text("step_00000002\n")
    assert names(tmp_path) == [
        BEST,
        LATEST,
        "step_00000001_good",
        "step_00000002",
        "step_00000004",
        "step_00000005",
        "step_00000008",
    ]
    assert (tmp_path / LATEST).read_text() == "step_00000005"


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failed_write_is_one_line_and_the_checkpoint_before_it_stays(tmp_path: Path, asynchronous: bool) -> None:
    state, folder = state_of(config_of(asynchronous=asynchronous)), tmp_path / "checkpoints"
    complete: list[int] = []
    with pytest.raises(CheckpointError) as raised, CheckpointSaver(state, folder, complete.append) as saver:
        state.step = 1
        saver.save({})
        saver.wait()
        (folder / "step_00000002").write_text("a file where the folder should go")
        state.step = 2
        saver.save({})
        saver.wait()
    assert "step_00000002: cannot be written (rank 0: " in str(raised.value) and "\n" not in str(raised.value)
    assert complete == [1] and not list(folder.glob(".*.tmp"))
    assert latest(tmp_path) == folder / "step_00000001"
    load_checkpoint(state, folder / "step_00000001")
    assert state.step == 1


def test_an_error_that_ends_the_run_leaves_the_checkpoint_in_flight_complete(tmp_path: Path) -> None:
    state = state_of(config_of())
    with pytest.raises(ZeroDivisionError), CheckpointSaver(state, tmp_path) as saver:
        saver.save({})
        raise ZeroDivisionError
    assert (tmp_path / LATEST).read_text() == "step_00000000"
    load_checkpoint(state, tmp_path / "step_00000000")


def test_a_checkpoint_that_names_a_kernel_backend_of_earlier_is_read(tmp_path: Path) -> None:
    state = state_of(config_of())
    with CheckpointSaver(state, tmp_path) as saver:
        saver.save({"cursor": 7})
    record = tmp_path / "step_00000000" / "state.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"kernels": "chunked", "checksums": False}))
    (record.parent / "checksums.json").unlink()  # it had none
    assert load_checkpoint(state, record.parent) == {"cursor": 7}


def test_a_save_in_flight_completes_between_steps(tmp_path: Path) -> None:
    state, complete = state_of(config_of()), []
    with CheckpointSaver(state, tmp_path, complete.append) as saver:
        saver.poll()
        saver.save({})
        wait_for(lambda: saver.poll() or complete, what="the save is complete")
        saver.poll()
    assert complete == [0]


def test_without_room_for_the_copy_training_waits_for_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = state_of(config_of())
    monkeypatch.setattr(host_memory, "free_memory", lambda: 1000)
    copies = []
    monkeypatch.setattr(Snapshot, "independent", lambda snapshot: copies.append(snapshot) or snapshot)
    with CheckpointSaver(state, tmp_path) as saver:
        for state.step in (1, 2):
            saver.save({})
            assert (tmp_path / f"step_{state.step:08d}").is_dir(), "complete when the call returns"
    assert not copies and load_checkpoint(state, tmp_path / "step_00000002") == {}
    said = [line for line in caplog.messages if "free memory" in line]
    assert len(said) == 1 and "checkpoint.asynchronous: the copy of step 1 would take" in said[0]


def test_gradients_and_optimizer_that_cannot_fit_are_refused_before_they_are_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_memory, "free_memory", lambda: 1000)
    with pytest.raises(OutOfMemory, match="gradients and optimizer state take"):
        state_of(config_of())
