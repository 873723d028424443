#!/usr/bin/env python
"""Compares `lwz simulate` with real GRPO runs: synchronous, one and two steps ahead, over-sampled.

    python tools/check_simulator.py [--steps 12] [--rate 125] [--folder DIR]

Each run is the real command with a tiny policy: trainer, controller in its own process, journal and HTTP are the
product's. The engine is synthetic (rate_engine.py): it writes `--rate` tokens per second on each stream, with log-normal
lengths, so that engine and trainer do not share the cores. The loss (paced_functions.py) sleeps `--token-seconds` for every
token, beside the real forward and backward pass, so that the trainer's speed does not depend on what else the machine does
either. Lengths depend on the rollouts' seeds, so all runs write the same texts.

Everything is calibrated on the synchronous run; the other three are predicted with its numbers. "Own trainer" takes the
seconds of training and weight sync from each run itself, and only the engines' from the synchronous one: what is left is
the error of the simulation, without that of a machine whose speed changes. The first step of each run is left out,
because it includes what a process does only once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import paced_functions
from rate_engine import KEY
from rollout_load import engine

from megatron_lwz.config import Config
from megatron_lwz.metrics import Row, read_metrics
from megatron_lwz.planner.simulation.measure import FIRST, measure
from megatron_lwz.planner.simulation.numbers import Numbers, setting_of
from megatron_lwz.planner.simulation.run import Record, Simulation
from megatron_lwz.run_paths import RunPaths
from tests.support import grpo_runs
from tests.support.stages import variables

PROMPTS, GROUP = 4, 4


@dataclass(frozen=True)
class Mode:
    """One setting: `rollout.max_staleness` and `rollout.over_sampling`."""

    name: str
    staleness: int
    over_sampling: float | None = None


MODES = (
    Mode("synchronous", 0),
    Mode("k = 1", 1),
    Mode("k = 2", 2),
    Mode("k = 2, over-sampling 1", 2, 1.0),
)


def main() -> None:
    """Runs the four settings, simulates them, and prints both as a Markdown table."""
    options = _options()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        runs = {mode: folder / f"run{place}" for place, mode in enumerate(MODES)}
        with engine(options) as server:
            config = _write_config(folder, server.url, options)
            for mode, run in runs.items():
                if not RunPaths(run).summary.exists():  # a run that was broken off begins anew
                    shutil.rmtree(run, ignore_errors=True)
                    _train(config, run, mode, options.token_seconds)
        known, numbers = measure(runs[MODES[0]], share=0.0)
        _print_numbers(numbers)
        print(
            "| | s per step, measured | simulated | ratio | ratio, own trainer | staleness | of tokens | waiting groups |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for mode, run in runs.items():
            print(f"| {' | '.join(_cells(mode, run, known, numbers))} |")


def _cells(mode: Mode, run: Path, known: Config, numbers: Numbers) -> list[str]:
    """Returns a row of the table. Pairs are measured / simulated."""
    rows = [row for row in read_metrics(RunPaths(run).metrics) if row["step"] > FIRST]
    _, own = measure(run, share=0.0, decoding=False)
    record = _simulate(mode, known, numbers, FIRST + len(rows))
    beside = _simulate(mode, known, replace(numbers, trainer=own.trainer, sync=own.sync), FIRST + len(rows))
    steps = record.steps[FIRST:]
    measured = mean(map(_seconds, rows))
    simulated, with_own = (mean(step.seconds for step in found.steps[FIRST:]) for found in (record, beside))
    stale = [number - at for number, step in enumerate(steps, FIRST + 1) for at in step.admitted]
    tokens = sum(step.unused_tokens for step in record.steps) / sum(step.tokens for step in steps)
    return [
        mode.name,
        f"{measured:.2f}",
        f"{simulated:.2f}",
        f"{simulated / measured:.3f}",
        f"{with_own / measured:.3f}",
        f"{mean(row['rollout/staleness'] for row in rows):.2f} / {mean(stale):.2f}",
        f"{_token_staleness(rows):.2f} / {tokens:.2f}",
        f"{mean(row['rollout/waiting'] for row in rows):.2f} / {mean(step.waiting for step in steps):.2f}",
    ]


def _simulate(mode: Mode, known: Config, numbers: Numbers, steps: int) -> Record:
    setting = setting_of(known, numbers, steps=steps, staleness=mode.staleness, over_sampling=mode.over_sampling)
    return Simulation(setting, numbers.lengths).run()


def _token_staleness(rows: Sequence[Row]) -> float:
    tokens = sum(row["rollout/tokens"] for row in rows)
    return sum(row["rollout/token_staleness"] * row["rollout/tokens"] for row in rows) / tokens


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rate", type=float, default=125.0, help="tokens per second of a stream")
    parser.add_argument("--delta", type=int, default=16, help="tokens per event of a stream")
    parser.add_argument("--median", type=int, default=300)
    parser.add_argument("--sigma", type=float, default=0.7)
    parser.add_argument("--cap", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=32, help="slots of the engine")
    parser.add_argument("--token-seconds", type=float, default=4e-4, help="what the loss sleeps per token")
    parser.add_argument("--folder", type=Path, help="keep the runs here; runs that are there already are not repeated")
    return argparse.Namespace(**vars(parser.parse_args()), url=None)


def _write_config(folder: Path, url: str, options: argparse.Namespace) -> Path:
    return grpo_runs.write_example(
        folder,
        training={"steps": options.steps, "prompts_per_step": PROMPTS, "tokens_per_micro_batch": 4096},
        data={"held_out_prompts": None},
        rollout={
            "engine": "vllm",
            "urls": [url],
            "max_new_tokens": options.cap,
            "concurrency": options.streams,
            "controller": "process",
        },
        grpo={"group_size": GROUP, "loss_function": "paced_functions:loss"},
        reward={"functions": ["paced_functions:tokens"]},
        optimizer={"lr": 1e-6},
        checkpoint={"interval": 0},
    )


def _train(config: Path, run: Path, mode: Mode, token_seconds: float) -> None:
    over = "null" if mode.over_sampling is None else mode.over_sampling
    given = [f"run.dir={run}", f"rollout.max_staleness={mode.staleness}", f"rollout.over_sampling={over}"]
    environment = {**variables(), "LWZ_ENGINE_TOKEN": KEY, paced_functions.SECONDS: str(token_seconds)}
    environment["PYTHONPATH"] += f":{Path(__file__).resolve().parent}"
    line = grpo_runs.command(config, *given)
    done = subprocess.run(line, cwd=grpo_runs.ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{mode.name}: exit status {done.returncode}: {(done.stdout + done.stderr)[-4000:]}")
    print(f"{mode.name}: done, load {os.getloadavg()[0]:.1f}", file=sys.stderr)


def _print_numbers(numbers: Numbers) -> None:
    decoding, trainer = numbers.engines.decoding, numbers.trainer
    print(
        f"calibrated on the synchronous run: a decode step {1000 * decoding.base:.3f} ms + "
        f"{1000 * decoding.per_stream:.4f} ms per stream, rewards and commits {numbers.rewards:.2f} s, training "
        f"{trainer.fixed:.2f} s + {1e6 * trainer.per_token:.1f} µs per token, weight sync {numbers.sync.seconds:.2f} s; "
        f"{numbers.sources['decoding']}\n"
    )


def _seconds(row: Row) -> float:
    return sum(value for name, value in row.items() if name.startswith("seconds/"))


if __name__ == "__main__":
    main()
