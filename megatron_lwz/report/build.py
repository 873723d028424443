"""Builds the page of a run that is finished, was killed, or is still going on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path

from megatron_lwz import __version__
from megatron_lwz.config import Config, load_config
from megatron_lwz.errors import ConfigError, DataError
from megatron_lwz.metrics import Row, read_history, read_metrics
from megatron_lwz.reading import read_text
from megatron_lwz.report import curves, embedded, hacking, lengths, profile, rollouts
from megatron_lwz.report.axes import short
from megatron_lwz.report.page import write_page
from megatron_lwz.run_paths import RunPaths, step_name

_PACKAGES = ("torch", "megatron-core", "transformer-engine", "flash-attn", "transformers", "tokenizers", "safetensors")


def build_report(run_dir: Path | str) -> Path:
    """Writes `report.html` into the run folder, whole or not at all, and returns its path.

    Reads config.yaml, metrics.jsonl and, if there, journal.sqlite and the figures of profiles. Raises DataError or ConfigError.
    """
    paths = RunPaths(run_dir)
    root, journal = paths.root, paths.journal
    config = load_config(paths.config)
    rows = _read_rows(root)
    ends = rollouts.read_ends(journal) if journal.is_file() else None
    sections = [
        _header(config, root, rows),
        curves.tiles(rows),
        _section("Held-out prompts", _best(paths, config, rows) + curves.evaluations(rows)),
        _section("Learning", curves.reward_charts(rows)),
        _section("Rewards at work", curves.composition_charts(rows) + curves.judge_table(rows)),
        _section("Length asked, length written", rollouts.length_charts(ends, _unit(config)) if ends else ""),
        _section("Lengths sampled, lengths trained on", lengths.panel(journal, rows, config) if ends else ""),
        _section("What the rewards pay for", _paid_for(journal, config) if ends else ""),
        _section("Training", curves.health_charts(rows)),
        _section("Profile", profile.panel(paths)),
        _reading_section(ends, config.logging.rollouts_in_report) if ends else "",
        _section("Rollouts to search", embedded.panel(journal, config.logging.report_megabytes) if ends else ""),
        _appendix(paths, rows),
    ]
    target = paths.report
    write_page(target, config.run.name or root.resolve().name, "".join(sections), script=embedded.script())
    return target


def _read_rows(root: Path) -> list[Row]:
    path = RunPaths(root).metrics
    if not path.is_file():
        raise DataError(path, "there is no such file: is this a run folder?")
    if not read_metrics(path):
        raise DataError(path, "no step is finished yet")
    return read_history(root)


def _header(config: Config, root: Path, rows: Sequence[Row]) -> str:
    name = escape(config.run.name or root.resolve().name)
    done, total = int(rows[-1]["step"]), config.training.steps
    state = f"{done} steps" if done >= total else f"{done} of {total} steps"
    seconds = sum(value for row in rows for key, value in row.items() if curves.is_seconds(key))
    spent = f" in {_duration(seconds)}" if seconds else ""
    layout = config.parallel
    split = f"tensor {layout.tensor} × pipeline {layout.pipeline} × context {layout.context}"
    return f'<h1>{name}</h1><p class="lead">{state}{spent} · {split} · seed {config.run.seed}</p>'


def _best(paths: RunPaths, config: Config, rows: Sequence[Row]) -> str:
    """Returns a note that names the best checkpoint, if the run selects one."""
    pointer, metric = paths.best, config.checkpoint.best_metric
    if metric is None or not pointer.is_file():
        return ""
    name = read_text(pointer).strip()
    value = next((row[metric] for row in rows if step_name(int(row["step"])) == name and metric in row), None)
    of = f" {short(value)}" if value is not None else ""
    return f'<p class="note">Best checkpoint: {escape(name)}, {escape(metric)}{of}; checkpoints/best names it.</p>'


def _reading_section(ends: rollouts.Ends, count: int) -> str:
    after = rollouts.readings(ends.last or ends.first, count)
    before = rollouts.readings(ends.first, count) if ends.last else ""
    note = '<p class="note">From the last steps; in each group the rollout of median reward.</p>'
    folded = (
        f'<details class="box"><summary>The same from the first steps</summary>{before}</details>' if before else ""
    )
    return _section("To read", note + after + folded if after else "")


def _appendix(paths: RunPaths, rows: Sequence[Row]) -> str:
    config = escape(read_text(paths.config))
    versions = "".join(f"<tr><td>{name}</td><td>{escape(version)}</td></tr>" for name, version in _versions())
    return (
        "<h2>Details</h2>"
        f'<details class="box"><summary>All metrics</summary>{curves.training_table(rows)}</details>'
        f'<details class="box"><summary>Config</summary><div class="scroll" tabindex="0"><pre>{config}</pre></div></details>'
        f'<details class="box"><summary>Versions</summary><table>{versions}</table></details>'
    )


def _paid_for(journal: Path, config: Config) -> str:
    """What the rewards pay for; where the run's `reward.advantage_function` does not run here, its error."""
    try:
        sample = hacking.read_sample(journal, config)
    except ConfigError as error:
        return f'<p class="note">Left out, advantages cannot be computed here: {escape(str(error))}</p>'
    return hacking.panel(sample) if sample else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _unit(config: Config) -> str:
    unit = config.reward.length.unit
    return "words + CJK characters" if unit == "words" else unit


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _versions() -> list[tuple[str, str]]:
    """Returns the versions of the packages installed where the report is built."""
    found = [("megatron-lwz", __version__), ("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
