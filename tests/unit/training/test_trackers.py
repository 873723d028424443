"""Trackers: what fails in one is warned about once and counted, and harms no run; wandb, trackio and mlflow where installed."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import sqlite3
import struct
import threading
from pathlib import Path

import pytest

from megatron_lwz.config import validate
from megatron_lwz.distributed import launch
from megatron_lwz.errors import ConfigError
from megatron_lwz.metrics import MetricsWriter, read_metrics
from megatron_lwz.training import trackers
from megatron_lwz.training.trackers import Background, check_trackers, open_metrics


class Recorder:
    def __init__(self, bad_steps=(), bad_starts=0):
        self.bad_steps, self.bad_starts, self.starts = bad_steps, bad_starts, 0
        self.rows, self.ended = [], None

    def start(self):
        self.starts += 1
        if self.starts <= self.bad_starts:
            raise OSError("no\nnetwork")
        return self

    def log(self, step, values):
        if step in self.bad_steps:
            raise SystemExit(1)
        self.rows.append((step, dict(values)))

    def finish(self, *, finished):
        self.ended = finished


def written(folder: Path, recorder: Recorder, steps=4) -> dict:
    writer = MetricsWriter(folder, tensorboard=False, sinks=[Background("wandb", recorder.start)])
    for step in range(1, steps + 1):
        writer.write(step, {"loss": 1.0 / step, "kl": math.nan})
    writer.write_evaluation(2, {"eval/reward": 0.5})
    writer.close(1.0)
    return json.loads((folder / "summary.json").read_text())


def test_it_gets_every_finite_value_and_is_finished(tmp_path):
    recorder = Recorder()
    assert written(tmp_path, recorder)["tracker_failures"] == {"wandb": 0}
    assert [step for step, _ in recorder.rows] == [1, 2, 3, 4, 2] and recorder.ended is True
    assert recorder.rows[0][1] == {"loss": 1.0, "trackers/wandb_failures": 0.0}


@pytest.mark.parametrize(("recorder", "failures"), [
    (Recorder(bad_steps=(1, 3)), 2), (Recorder(bad_starts=1), 1), (Recorder(bad_starts=99), 5),
])  # fmt: skip
def test_what_fails_is_warned_about_once_and_counted(tmp_path, caplog, recorder, failures):
    with caplog.at_level(logging.WARNING, "megatron_lwz"):
        summary = written(tmp_path, recorder)
    assert summary["tracker_failures"] == {"wandb": failures} and len(caplog.messages) == 1
    assert "logging.wandb: " in caplog.text and "the run goes on" in caplog.text and "no\nnetwork" not in caplog.text
    assert recorder.starts <= 3 and len(read_metrics(tmp_path / "metrics.jsonl")) == 4


def test_one_that_hangs_is_left_behind_and_what_it_cannot_hold_is_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trackers, "_WAITING", 2)
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 0.05)
    go, begun = threading.Event(), threading.Event()

    def hang():
        begun.set()
        go.wait()
        raise OSError("gone")

    sink = Background("mlflow", hang)
    sink.log(1, {"loss": 1.0})
    begun.wait()
    for step in range(2, 7):
        sink.log(step, {"loss": 1.0})
    assert sink.failures == 3, "one is being sent, two wait"
    sink.close(finished=True)
    sink.close(finished=True)
    assert sink.failures == 5 and len(caplog.messages) == 1
    go.set()
    sink._thread.join(0)


def test_a_tracker_whose_package_is_missing_is_one_line_at_the_start(monkeypatch):
    config = validate({"logging": {"mlflow": {"use": True}}})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="needs the package mlflow: pip install mlflow"):
        check_trackers(config)
    check_trackers(validate({}))


@pytest.fixture
def patient(monkeypatch):
    """Real packages take long to start on a busy machine."""
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 300.0)
    monkeypatch.setattr(trackers, "_BROKEN_OFF_SECONDS", 300.0)


def run_twice(folder: Path, name: str, **section) -> None:
    """Three steps, a stop, and a second start that repeats step 3."""
    config = validate({"run": {"dir": str(folder / "run")}, "logging": {name: {"use": True, **section}}})
    writer = open_metrics(config)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step), "kl": math.nan})
    launch.end_run()
    writer = open_metrics(config)
    for step in (3, 4):
        writer.write(step, {"loss": 10.0 * step})
    writer.write_evaluation(3, {"eval/reward": 0.5})
    writer.close(1.0)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["tracker_failures"] == {name: 0}


def leveldb_records(data: bytes):
    """The records of a .wandb file: seven bytes, then LevelDB's log format."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_works_offline_and_goes_on_under_the_same_id(tmp_path, patient):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run_twice(tmp_path, "wandb", mode="offline", project="p")
    number = (tmp_path / "run" / "trackers" / "wandb.id").read_text().strip()
    files = sorted((tmp_path / "run" / "trackers").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and {file.stem for file in files} == {f"run-{number}"}
    rows = []
    for file in files:
        for data in leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                rows.append({key: items[key] for key in ("step", "loss", "eval/reward") if key in items})
    assert rows == [
        {"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 3.0},
        {"step": 3, "loss": 30.0}, {"step": 4, "loss": 40.0}, {"step": 3, "eval/reward": 0.5},
    ]  # fmt: skip


def test_mlflow_keeps_its_run_in_the_run_folder_and_goes_on_with_it(tmp_path, patient):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    run_twice(tmp_path, "mlflow")
    folder = tmp_path / "run" / "trackers"
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    run = client.get_run((folder / "mlflow.id").read_text().strip())
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    history = sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss"))
    assert history == [(1, 1.0), (2, 2.0), (3, 3.0), (3, 30.0), (4, 40.0)]
    assert run.data.metrics["eval/reward"] == 0.5 and list((folder / "mlflow").rglob("config.json"))
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_trackio_goes_on_with_its_run(tmp_path, monkeypatch, patient):
    trackio_dir = tmp_path / "trackio"
    monkeypatch.setenv("TRACKIO_DIR", str(trackio_dir))
    pytest.importorskip("trackio")
    run_twice(tmp_path, "trackio", project="p")
    name = (tmp_path / "run" / "trackers" / "trackio.id").read_text().strip()
    (file,) = trackio_dir.glob("p*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert {row[0] for row in rows} == {name}
    losses = [(step, json.loads(metrics)["loss"]) for _, step, metrics in rows if "loss" in json.loads(metrics)]
    assert losses == [(1, 1.0), (2, 2.0), (3, 3.0), (3, 30.0), (4, 40.0)]
