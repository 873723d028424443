"""Worker side of test_supervised: pretraining and fine-tuning of one tiny model under several layouts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_lwz.config import Config, load_config
from megatron_lwz.distributed import launch
from megatron_lwz.errors import LwzError
from megatron_lwz.metrics import read_metrics
from megatron_lwz.training import sft
from megatron_lwz.training.pretrain import pretrain

KILLED_AFTER = 5
INTERVAL = 3
SAVING = f"checkpoint.interval={INTERVAL}"


class Killed(Exception):
    """Ends a run between two steps, on every rank."""


def config_of(folder: str, stage: str, name: str, overrides: list[str]) -> Config:
    return load_config(Path(folder, f"{stage}.yaml"), [f"run.dir={folder}/{stage}/{name}", *overrides])


def run(config: Config, stage: str, *, killed_after: int | None = None) -> list[dict[str, float | None]]:
    """The rows of metrics.jsonl without what a clock says; nan as null."""

    def on_step(step: int, _: Mapping[str, float]) -> None:
        if step == killed_after:
            raise Killed

    try:
        if stage == "sft":
            sft.train(*sft.prepare(config), on_step)
        else:
            pretrain(config, on_step)
    except Killed:
        launch.end_run()  # as a kill would: the lock of the run folder ends with its process
    rows = read_metrics(Path(config.run.dir, "metrics.jsonl"))
    timed = ("seconds", "tokens_per_second", "tokens_per_second_per_gpu", "flops_per_second_per_gpu", "mfu")
    return [{k: None if math.isnan(v) else v for k, v in row.items() if k not in timed} for row in rows]


def curves(folder: str, layouts: dict[str, list[str]], killed: list[list[str]], moved: list[list[str]]) -> Any:
    """Runs of both stages under every layout; `killed` are resumed under the same, `moved` (from, to) under another."""
    found: dict[str, Any] = {}
    for name, overrides in layouts.items():
        for stage in ("sft", "pretrain"):
            found[f"{stage} {name}"] = run(config_of(folder, stage, name, overrides), stage)
    for stage, name in killed:
        config = config_of(folder, stage, f"{name}_killed", [*layouts[name], SAVING])
        run(config, stage, killed_after=KILLED_AFTER)
        found[f"{stage} {name} killed"] = run(config, stage)
    for stage, source, target in moved:
        config = config_of(folder, stage, f"{source}_moved", [*layouts[source], SAVING])
        run(config, stage, killed_after=KILLED_AFTER)
        found[f"{stage} {source} → {target}"] = run(config_of(folder, stage, f"{source}_moved", layouts[target]), stage)
    return found


def curves_in_bf16(folder: str, layouts: dict[str, list[str]]) -> dict[str, Any]:
    """Pretraining in bf16 under every layout."""
    found = {}
    for name, overrides in layouts.items():
        config = config_of(folder, "pretrain", f"{name}_bf16", [*overrides, "training.precision=bf16"])
        found[f"pretrain {name} bf16"] = run(config, "pretrain")
    return found


def one_rank(folder: str, layouts: dict[str, list[str]], in_bf16: list[str]) -> dict[str, Any]:
    """The reference curves, `in_bf16` some of them once more, and a run whose data is poisoned."""
    found = curves(folder, layouts, [], []) | curves_in_bf16(folder, {name: layouts[name] for name in in_bf16})
    found["poisoned"] = poisoned(folder)
    return found


def poisoned(folder: str) -> dict[str, Any]:
    """One word's embedding is not a number: the first step that meets it is skipped, the second ends the run.

    The seed puts the row into steps 2 and 6.
    """
    found: dict[str, Any] = {}
    options = [f"model.hf={folder}/poisoned", "optimizer.schedule=constant", "training.skip_budget=1", "run.seed=20"]
    options += ["training.precision=bf16", "parallel.distributed_optimizer=false"]  # masters must stay untouched too
    config = config_of(folder, "sft", "poisoned", options)
    try:
        found["rows"] = run(config, "sft")
    except LwzError as error:
        found["error"] = str(error)
        found["rows"] = len(read_metrics(Path(config.run.dir, "metrics.jsonl")))
    found["files"] = sorted(path.name for path in Path(config.run.dir, "skipped").iterdir())
    return found


def long_context(folder: str, overrides: list[str]) -> list[dict[str, float | None]]:
    """Two steps on one sequence of 32K tokens."""
    length = [
        "training.sequence_length=32768",
        "training.tokens_per_micro_batch=32768",
        "training.sequences_per_step=1",
    ]
    length += [
        "training.ramp_from=null",
        "training.steps=2",
        f"data.corpus=[{folder}/book.jsonl]",
    ]
    name = "_".join(["long", *overrides]).replace("=", "_").replace("/", "_")
    return run(config_of(folder, "pretrain", name, [*length, *overrides]), "pretrain")
