"""What a profile holds when a run does not take all steps of the window, and when it cannot be written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_lwz.distributed import launch
from megatron_lwz.errors import Resumable
from megatron_lwz.profiling.spans import ENGINE, PHASES, Recorder, Window
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.profiler import Profiler
from megatron_lwz.training.throughput import Throughput, per_gpu
from tests.support.traces import read_trace
from tests.unit.training.tiny_state import config_of


@pytest.fixture(autouse=True)
def _groups(caplog) -> Iterator[None]:
    launch.initialize(config_of())
    caplog.set_level(logging.INFO)
    yield
    launch.shutdown()


def train(profiler: Profiler, run: RunPaths, steps: range, *, stop: int = 99, service: Recorder | None = None) -> None:
    """As the loops do; the waiting of step `stop` is broken off."""
    with profiler.recording(run, service.record if service else lambda _: []):
        for step in profiler.steps(iter(steps)):
            with profiler.spans.span(PHASES, "update"):
                torch.ones(8, 8) @ torch.ones(8, 8)
            if step == stop:
                break


def test_a_run_that_ends_within_the_window_writes_the_steps_that_are_whole(tmp_path: Path, caplog) -> None:
    run, profiler, service = RunPaths(tmp_path), Profiler(Window(2, 5)), Recorder()
    with pytest.raises(Resumable), profiler, service.span(f"{ENGINE}http://e", "rollout 0-0"):
        train(profiler, run, range(1, 6), stop=4, service=service)
        raise Resumable("saved and stopped")
    (written,) = run.profile.glob("*.gz")
    assert written == run.profile_trace("2-3")
    trace = read_trace(written)
    assert [span["name"] for span in trace.spans("rank 0: trainer", "steps")] == ["step 2", "step 3"]
    assert len(trace.spans("rank 0: trainer", "phases")) == 2
    (request,) = trace.spans("engine http://e")
    assert request["ts"] == 0 and request["args"] == {"unfinished": 1}, "it began before and is still under way"
    assert f"{written}: open in ui.perfetto.dev" in caplog.text
    assert "steps that this start did not run are not in it: 4, 5" in caplog.text


def test_a_run_that_has_nothing_to_do_says_so_and_an_error_writes_nothing(tmp_path: Path, caplog) -> None:
    run = RunPaths(tmp_path)
    with Profiler(Window(2, 3)):
        pass
    assert "did not run are not in it: 2, 3" in caplog.text
    caplog.clear()
    profiler = Profiler(Window(2, 3))
    with pytest.raises(ZeroDivisionError), profiler, profiler.recording(run):
        for step in profiler.steps(iter(range(1, 4))):
            1 / (step - 2)
    assert caplog.text == "" and list(tmp_path.iterdir()) == []
    torch.autograd.profiler.profile(use_kineto=True).__enter__().__exit__(None, None, None)  # torch's was ended


def test_a_profile_that_cannot_be_written_is_a_warning_and_training_goes_on(tmp_path: Path, caplog) -> None:
    run, profiler = RunPaths(tmp_path), Profiler(Window(1, 1))
    run.profile.write_text("in the way")
    with profiler:
        train(profiler, run, range(1, 3))
    assert "the profile is not written: " in caplog.text and str(run.profile) in caplog.text
    assert "perfetto" not in caplog.text and run.profile.read_text() == "in the way"


def test_the_rates_are_those_of_the_ranks_and_mfu_needs_a_peak() -> None:
    config = config_of()
    assert per_gpu(config, 100, 1e9, 2.0) == {"tokens_per_second_per_gpu": 50.0, "flops_per_second_per_gpu": 5e8}
    assert per_gpu(config, 100, 1e9, 0.0) == {}
    known = config.model_copy(update={"training": config.training.model_copy(update={"peak_flops": 1e9})})
    assert per_gpu(known, 100, 1e9, 2.0)["mfu"] == 0.5
    assert Throughput(known).take({"seconds/update": 1.0}) == {"seconds/update": 1.0}, "nothing was computed"
