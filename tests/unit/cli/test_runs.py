"""`lwz runs`: which folders are runs, and what it says of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from megatron_lwz.cli import common, runs
from megatron_lwz.config import Config, save_config
from megatron_lwz.file_lock import FileLock
from megatron_lwz.metrics import MetricsWriter
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.attempts import append_attempt


def make_run(folder: Path, rows: list[dict[str, float]], stage: str, changed: float) -> RunPaths:
    run = RunPaths(folder)
    folder.mkdir(parents=True)
    save_config(Config(), run.config)
    append_attempt(run.attempts, 0, {"stage": stage})
    with MetricsWriter(folder, tensorboard=False) as writer:
        for step, row in enumerate(rows, start=1):
            writer.write(step, row)
    for path in (run.metrics, run.attempts):
        if path.exists():
            os.utime(path, (changed, changed))
    return run


def listed(capsys, *argv: str) -> list[dict]:
    assert common.run(runs.main, [*argv, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_run_with_its_state_the_newest_first(capsys, tmp_path):
    grpo = {"loss": 0.5, "reward/length": 0.25, "reward/writing": float("nan"), "reward_masked/length": 0.0}
    running = make_run(tmp_path / "a" / "b" / "grpo", [grpo, grpo], "grpo", 3e9)
    make_run(tmp_path / "sft", [{"loss": 2.5}], "sft", 1e9).summary.write_text('{"steps": 1}')
    make_run(tmp_path / "new", [], "pretrain", 2e9)
    make_run(tmp_path / "a" / "b" / "grpo" / "within", [], "grpo", 4e9)
    (tmp_path / "no-run").mkdir()
    held = "import sys; from pathlib import Path; from megatron_lwz.file_lock import FileLock\n"
    held += "lock = FileLock(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", held, running.lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    first, second, third = listed(capsys, str(tmp_path))
    holder.communicate()
    assert first["path"] == str(tmp_path / "a" / "b" / "grpo") and first["state"].startswith(
        f"running: process {holder.pid}"
    )
    assert (first["stage"], first["step"], first["steps"]) == ("grpo", 2, 150)
    assert first["metrics"] == {"length": 0.25, "writing": None}
    assert (second["stage"], second["state"], second["step"], second["metrics"]) == ("pretrain", "stopped", 0, {})
    assert (third["stage"], third["state"], third["metrics"]) == ("sft", "finished", {"loss": 2.5})
    assert listed(capsys, str(tmp_path))[0]["state"] == "stopped"


def test_a_run_that_cannot_be_read_is_listed_with_the_fault(capsys, tmp_path):
    run = make_run(tmp_path / "x[red]", [{"loss": 1.0}, {"loss": 2.0}], "sft", 1e9)
    run.metrics.write_text("{\x1b[2J}\n" + run.metrics.read_text())
    (found,) = listed(capsys, str(tmp_path))
    assert "metrics.jsonl" in found["state"] and "line 1" in found["state"]
    assert common.run(runs.main, [str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "x[red]" in out.replace("\n", "") and "\x1b" not in out


def test_no_run_and_no_folder_are_said(capsys, tmp_path):
    assert common.run(runs.main, [str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"no run folder in {tmp_path}")
    assert common.run(runs.main, [str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'}: no such folder")


def test_it_looks_without_changing_anything(tmp_path):
    run = make_run(tmp_path / "run", [{"loss": 1.0}], "sft", 1e9)
    FileLock(run.lock).release()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert common.run(runs.main, [str(tmp_path)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
