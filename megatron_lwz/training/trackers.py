"""Weights & Biases, Trackio and MLflow: they get the rows of metrics.jsonl and evaluation.jsonl, and cannot harm a run.

Each works in a thread of its own. What raises there is warned about once and counted, and so is a row that waits too
long. A run that is started again goes on under the same id, which lies in `trackers/` of its folder.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from megatron_lwz.config import Config
from megatron_lwz.distributed import launch
from megatron_lwz.errors import ConfigError, printable
from megatron_lwz.metrics import MetricsWriter
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.writing import write_text

log = logging.getLogger(__name__)

NAMES = ("wandb", "trackio", "mlflow")
"""The trackers: the name of a section of `logging`, and of the package that it needs."""
_WAITING = 1000
"""Rows that may wait for a tracker; what comes then is lost to it, and counted."""
_STARTS = 3
"""How often a tracker is started; each try may take a minute where its server does not answer."""
_LAST_SECONDS, _BROKEN_OFF_SECONDS = 60.0, 8.0
"""How long the end of a run waits for a tracker to take the last rows; and a run that is stopped."""


class Tracker(Protocol):
    """A run in a tracker's own terms. Every call may raise anything."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends finite values of a step. Steps may come again, or late."""
        ...

    def finish(self, *, finished: bool) -> None:
        """Ends it; not `finished`: the run may go on later."""
        ...


class Background:
    """A `metrics.Sink` that hands its rows to a tracker in a thread."""

    def __init__(self, name: str, start: Callable[[], Tracker]) -> None:
        """`start` connects; it is called in the thread, with the first row."""
        self.name, self.failures = name, 0
        self._start, self._starts = start, 0
        self._tracker: Tracker | None = None
        self._rows: queue.Queue[tuple[int, dict[str, float]] | bool] = queue.Queue(_WAITING)
        self._lock, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queues the finite values of a row."""
        self._put((step, {key: float(value) for key, value in values.items() if math.isfinite(value)}))

    def close(self, *, finished: bool) -> None:
        """Waits, within bounds, until the tracker has all rows and is finished. Once."""
        if self._closed:
            return
        self._closed = True
        self._put(finished)
        self._thread.join(_LAST_SECONDS if finished else _BROKEN_OFF_SECONDS)
        if self._thread.is_alive():
            self._fail("does not end: left behind")

    def _put(self, item: tuple[int, dict[str, float]] | bool) -> None:
        try:
            self._rows.put_nowait(item)
        except queue.Full:
            self._fail(f"does not keep up: {_WAITING} rows wait")

    def _work(self) -> None:
        while True:
            item = self._rows.get()
            try:
                if isinstance(item, bool):
                    if self._tracker is not None:
                        self._tracker.finish(finished=item)
                else:
                    self._connected().log(*item)
            except (Exception, SystemExit) as error:
                self._fail(_line(error))
            if isinstance(item, bool):
                return

    def _connected(self) -> Tracker:
        if self._tracker is None:
            if self._starts == _STARTS:
                raise RuntimeError(f"could not be started in {_STARTS} tries")
            self._starts += 1
            self._tracker = self._start()
        return self._tracker

    def _fail(self, why: str) -> None:
        with self._lock:
            self.failures += 1
            first = self.failures == 1
        if first:
            text = "logging.%s: %s; the run goes on, and counts what fails (trackers/%s_failures)"
            log.warning(text, self.name, why, self.name)


def check_trackers(config: Config) -> None:
    """Checks that the package of every tracker in use is installed. Raises ConfigError."""
    for name in NAMES:
        if getattr(config.logging, name).use and importlib.util.find_spec(name) is None:
            raise ConfigError(f"logging.{name}.use", True, f"needs the package {name}: pip install {name}")


def open_metrics(config: Config) -> MetricsWriter:
    """Returns the writer of the run's metrics, with the trackers in use. For one process of the run.

    The trackers are closed with it, or when the run is shut down.
    """
    kinds: dict[str, Callable[[Config], Tracker]] = {"wandb": _Wandb, "trackio": _Trackio, "mlflow": _Mlflow}
    opened = [Background(name, partial(kinds[name], config)) for name in NAMES if getattr(config.logging, name).use]
    for tracker in opened:
        launch.at_shutdown(partial(tracker.close, finished=False))
    return MetricsWriter(config.run.dir, config.logging.tensorboard, opened)


class _Wandb:
    def __init__(self, config: Config) -> None:
        import wandb

        section, paths = config.logging.wandb, RunPaths(config.run.dir)
        number = _kept(paths, "wandb", lambda: secrets.token_hex(4))
        self._run = wandb.init(
            project=section.project,
            entity=section.entity,
            mode=section.mode,
            id=number,
            resume="allow",
            name=_name(config),
            dir=str(paths.trackers),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        # W&B drops rows below its own step; a repeated step and a late evaluation come with a step of ours
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def finish(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _Trackio:
    def __init__(self, config: Config) -> None:
        import trackio

        section = config.logging.trackio
        number = _kept(RunPaths(config.run.dir), "trackio", lambda: f"{_name(config)}-{secrets.token_hex(4)}")
        self._run = trackio.init(
            project=section.project,
            name=number,
            space_id=section.space,
            config=config.model_dump(mode="json"),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, *, finished: bool) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, config: Config) -> None:
        from mlflow import MlflowClient

        section, paths = config.logging.mlflow, RunPaths(config.run.dir)
        paths.trackers.mkdir(parents=True, exist_ok=True)
        uri = section.uri or f"sqlite:///{(paths.trackers / 'mlflow.db').resolve()}"
        self._client = client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(section.experiment)
        place = (paths.trackers / "mlflow").resolve().as_uri() if section.uri is None else None
        experiment = (
            found.experiment_id if found else client.create_experiment(section.experiment, artifact_location=place)
        )
        self._id = _kept(
            paths, "mlflow", lambda: str(client.create_run(experiment, run_name=_name(config)).info.run_id)
        )
        client.update_run(self._id, status="RUNNING")
        client.log_dict(self._id, config.model_dump(mode="json"), "config.json")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(key, value, now, step) for key, value in values.items()])

    def finish(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _kept(paths: RunPaths, name: str, make: Callable[[], str]) -> str:
    """Returns the run's id in a tracker: that of the last start, or a new one."""
    file = paths.trackers / f"{name}.id"
    if file.is_file() and (known := file.read_text(encoding="utf-8").strip()):
        return known
    made = make()
    paths.trackers.mkdir(parents=True, exist_ok=True)
    write_text(file, f"{made}\n")
    return made


def _line(error: BaseException) -> str:
    text = printable(" ".join(str(error).split()))[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _name(config: Config) -> str:
    return config.run.name or Path(config.run.dir).resolve().name
