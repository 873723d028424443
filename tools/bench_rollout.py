#!/usr/bin/env python
"""Measures the sustained rate of client, controller, journal and rewards: n streams, from engine bytes to the disk.

    python tools/bench_rollout.py [--streams 256] [--rate 250] [--seconds 60] [--median 4000 --sigma 0.6 --cap 30000]
    python tools/bench_rollout.py --beside [--controller process]   # how much slower a training loop in the main thread gets
    python tools/bench_rollout.py --asynchrony [--steps 20]  # step times and utilisation, synchronous and not, at equal data
    python tools/bench_rollout.py --url http://127.0.0.1:8000 --tokenizer DIR      # any of them against a real engine

Without --url a synthetic engine (rate_engine.py) in a separate process writes `--rate` tokens per second on each
stream, in deltas of `--delta` tokens, with log-normal lengths. `lag` is the time from a delta's arrival to the commit
that makes it durable. `memory` is that of this process, sampled every second; `growth` compares the last tenth of the
run with the second one. The core that is fully used limits the rate: this process, its event loop's thread, or the
engine.

--beside runs rank 0's side of the main job, with the controller in a thread or in a separate process, beside a training
loop. It pauses and resumes the engine in turns of a few seconds, and compares a step's mean time under the load with
that just before.

--asynchrony trains the same groups, of the same lengths, in every mode. Steps sleep as long as a trainer of
`--train-rate` tokens per second would take. Time is scaled: the synthetic engine is many times as fast as a real one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table
from rollout_load import (
    BATCHES_AHEAD,
    MOST_BEHIND,
    Feeder,
    Server,
    Watch,
    engine,
    loop_cpu_seconds,
    make_load,
    offered,
)

from megatron_lwz.rollout.admission import Admission
from megatron_lwz.units import MIB

LOAD = {"streams": 256, "group": 16, "delta": 16, "median": 4000, "sigma": 0.6, "cap": 30_000, "rate": 250.0}
ASYNCHRONY = {"streams": 32, "group": 8, "delta": 256, "median": 4000, "sigma": 0.9, "cap": 30_000, "rate": 4000.0}
PAGE = "# Rollouts under load, on a CPU"


@dataclass(frozen=True)
class Result:
    """Results of one run under load, in seconds, MiB, tokens, and shares of a core."""

    streams: int
    seconds: float
    tokens: int
    tokens_per_second: float
    offered: float | None
    rollouts: int
    lag_p50: float
    lag_p99: float
    process_share: float
    loop_share: float
    """Share of the controller's thread alone."""
    engine_share: float
    memory_mib: float
    memory_growth_mib: float
    journal_bytes_per_token: float

    def rows(self) -> list[tuple[str, str]]:
        """Returns (name, value) pairs for display."""
        most = f", {self.offered:,.0f} offered" if self.offered else ""
        cores = f"{self.process_share:.2f}, its event loop {self.loop_share:.2f}, the engine {self.engine_share:.2f}"
        return [
            ("streams", f"{self.streams}, for {self.seconds:.0f} s: {self.rollouts} rollouts done"),
            ("tokens per second to disk", f"{self.tokens_per_second:,.0f}{most}"),
            ("lag from token to disk", f"p50 {self.lag_p50:.2f} s, p99 {self.lag_p99:.2f} s"),
            ("cores", cores),
            ("memory", f"{self.memory_mib:.0f} MiB, growth {self.memory_growth_mib:+.0f} MiB"),
            ("journal", f"{self.journal_bytes_per_token:.1f} bytes per token"),
        ]


def measure(options: argparse.Namespace, server: Server, folder: Path) -> Result:
    """Keeps all streams busy for `options.seconds`."""
    batch = max(1, options.streams // options.group)
    load = make_load(options, server.url, server.key, folder, Admission(batch, MOST_BEHIND, carried=BATCHES_AHEAD))
    load.controller.start()

    def take(step: int) -> int:
        groups = load.controller.collect(step)
        load.controller.mark_consumed(groups, step)
        return sum(len(group.rollouts) for group in groups)

    feeder = Feeder(take)
    try:
        load.controller.begin(1)
        with Watch() as watch:
            before = (time.monotonic(), time.process_time(), loop_cpu_seconds(), server.cpu_seconds())
            tokens = load.journal.durable_tokens
            feeder.start()
            time.sleep(options.seconds)
            feeder.over.set()
            feeder.join()
            after = (time.monotonic(), time.process_time(), loop_cpu_seconds(), server.cpu_seconds())
            tokens = load.journal.durable_tokens - tokens
    finally:
        load.controller.close()
    seconds, *cpu = (end - begin for begin, end in zip(before, after, strict=True))
    size = sum(path.stat().st_size for path in folder.glob("journal.sqlite*"))
    return Result(
        streams=options.streams,
        seconds=seconds,
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        offered=offered(options),
        rollouts=feeder.rollouts,
        lag_p50=load.journal.lag(0.5),
        lag_p99=load.journal.lag(0.99),
        process_share=cpu[0] / seconds,
        loop_share=cpu[1] / seconds,
        engine_share=cpu[2] / seconds,
        memory_mib=max(watch.samples, default=0) / MIB,
        memory_growth_mib=watch.growth() / MIB if watch.samples else 0.0,
        journal_bytes_per_token=size / max(1, load.journal.durable_tokens),
    )


def compare(options: argparse.Namespace, server: Server, folder: Path) -> tuple[list[dict], list[tuple[str, ...]]]:
    """Returns (figures, table) of all modes."""
    from rollout_asynchrony import MODES, run_mode

    outcomes = [run_mode(mode, options, server, folder / str(place)) for place, mode in enumerate(MODES)]
    synchronous = outcomes[0].seconds_per_step
    rows: list[tuple[str, ...]] = [
        ("", "s per step", "of synchronous", "engine busy", "trainer busy", "largest gap", "gap at the end", "tokens")
    ]
    rows += [
        (
            *(found.mode, f"{found.seconds_per_step:.2f}", f"{found.seconds_per_step / synchronous:.2f}"),
            *(f"{found.engine_utilisation:.0%}", f"{found.trainer_utilisation:.0%}"),
            *(f"{found.largest_gap:.3f}", f"{found.gap_at_end:.3f}", f"{found.tokens:,}"),
        )
        for found in outcomes
    ]
    return [asdict(found) for found in outcomes], rows


def write_section(page: Path, title: str, note: str, rows: list[tuple[str, ...]]) -> None:
    """Writes the table into the page. A section with the same title is replaced."""
    head, *body = rows
    lines = [f"## {title}", "", note, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in body]
    sections = page.read_text(encoding="utf-8").strip().split("\n\n## ") if page.exists() else [PAGE]
    kept = [section for section in sections if not section.startswith(f"{title}\n")]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n## ".join([*kept, "\n".join(lines).removeprefix("## ")]) + "\n", encoding="utf-8")
    print(f"page: {page}")


def parse() -> argparse.Namespace:
    """Parses the command line. Defaults depend on the mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in LOAD.items():
        default = f"default {value:g}, {ASYNCHRONY[name]:g} with --asynchrony"
        parser.add_argument(f"--{name}", type=type(value), help=default)
    parser.add_argument("--seconds", type=float, default=60.0)
    where = "where the controller runs, with --beside"
    parser.add_argument("--controller", choices=("thread", "process"), default="thread", help=where)
    parser.add_argument("--commit", type=float, default=0.5, help="seconds between commits")
    parser.add_argument("--steps", type=int, default=20, help="of each mode, with --asynchrony")
    parser.add_argument("--train-rate", type=float, help="tokens per second; default: twice what all streams write")
    parser.add_argument("--url", help="an engine that runs already; default: a synthetic one")
    parser.add_argument("--api-key-env", default="LWZ_ENGINE_TOKEN", help="environment variable with its token")
    parser.add_argument("--tokenizer", type=Path, help="folder of the engine's tokenizer; needed with --url")
    parser.add_argument("--folder", type=Path, help="a new folder that keeps the journals; default: a temporary one")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--beside", action="store_true", help="run a training loop too: how much slower?")
    mode.add_argument("--asynchrony", action="store_true", help="compare synchronous and asynchronous training")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--markdown", type=Path, help="write the table here too, as a section of the page")
    options = parser.parse_args()
    for name, value in (ASYNCHRONY if options.asynchrony else LOAD).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.train_rate = options.train_rate or 2 * options.streams * options.rate
    if options.url and not options.tokenizer:
        parser.error("--url needs --tokenizer, to render prompts for that engine")
    return options


def main() -> None:
    """Measures, prints the table and writes the files."""
    options = parse()
    figures: list[dict[str, Any]] | dict[str, Any]
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=False)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(engine(options))
        if options.asynchrony:
            title = "Synchronous and asynchronous at equal data"
            figures, rows = compare(options, server, folder)
        elif options.beside:
            import rollout_beside

            title = f"Beside a training loop, the controller in a {options.controller}"
            beside = rollout_beside.measure(options, server, folder)
            figures, rows = asdict(beside), [("", ""), *beside.rows()]
        else:
            title = "Alone"
            result = measure(options, server, folder)
            figures, rows = asdict(result), [("", ""), *result.rows()]
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=120).print(table)
    made = f"{datetime.datetime.now():%Y-%m-%d %H:%M}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f} at the end"
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.markdown:
        asked = " ".join(f"--{name} {getattr(options, name):g}" for name in LOAD)
        asked += f" --steps {options.steps}" if options.asynchrony else f" --seconds {options.seconds:g}"
        mode = " --asynchrony" if options.asynchrony else ""
        mode += f" --beside --controller {options.controller}" if options.beside else ""
        write_section(options.markdown, title, f"{made}: `bench_rollout.py{mode} {asked}`", rows)


if __name__ == "__main__":
    main()
