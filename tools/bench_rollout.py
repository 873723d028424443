#!/usr/bin/env python
"""What client, controller, journal and rewards sustain: n streams at a time, from the engine's bytes to the disk.

    python tools/bench_rollout.py [--streams 256] [--rate 250] [--seconds 60] [--median 4000 --sigma 0.6 --cap 30000]
    python tools/bench_rollout.py --url http://127.0.0.1:8000 --tokenizer DIR      # a real engine

Without --url a synthetic engine (rate_engine.py) in a process of its own writes `--rate` tokens per second on each stream, in
deltas of `--delta` tokens, lengths from a log-normal law. `lag` is the time from a delta's arrival to the commit that makes it
durable. `memory` is this process's resident memory, sampled every second; `growth` compares the last tenth of the run with the
second one. CPU seconds are this process's: a rate below what is offered is bound by the controller's interpreter where its
share of a core is near 1, else by the engine. `--beside` instead runs a training loop in the main thread, as a trainer does, and
says how much slower it is than alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil
import torch
from rate_engine import EOS, KEY, Law, serve

from megatron_lwz.config.sections import FormatReward, LengthReward, RolloutSection
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.rewards.format import FormatComponent
from megatron_lwz.rewards.length import LengthComponent
from megatron_lwz.rollout.admission import Admission, Intake
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.types import LengthRange, Prompt, TokenDelta

BASELINE_SECONDS = 5.0
STEPS_AHEAD = 3
"""Steps submitted before the first of them is collected: enough that streams never run dry."""


class Letters:
    """The synthetic engine's tokenizer: one token per character code."""

    eos_ids = frozenset({EOS})

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text."""
        return "".join(map(chr, ids)).replace(chr(EOS), "")


class TimedJournal(Journal):
    """Counts, per millisecond, how long deltas wait until they are durable."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lags = np.zeros(60_000, np.int64)
        self.durable_tokens = 0
        self._arrived: list[tuple[float, int]] = []

    def extend(self, draft, start: int, delta: TokenDelta) -> None:
        """As the journal's."""
        super().extend(draft, start, delta)
        self._arrived.append((time.monotonic(), len(delta.tokens)))

    def commit(self) -> None:
        """As the journal's."""
        arrived, self._arrived = self._arrived, []
        super().commit()
        now = time.monotonic()
        for since, tokens in arrived:
            self.lags[min(len(self.lags) - 1, int(1000 * (now - since)))] += 1
            self.durable_tokens += tokens

    def lag(self, share: float) -> float:
        """Seconds within which this share of the deltas was durable."""
        counts = self.lags.cumsum()
        return float(np.searchsorted(counts, share * counts[-1])) / 1000


@dataclass(frozen=True)
class Result:
    """One run. Seconds, MiB, tokens."""

    streams: int
    seconds: float
    tokens: int
    tokens_per_second: float
    rollouts: int
    lag_p50: float
    lag_p99: float
    cpu_share: float | None
    memory_mib: float
    memory_growth_mib: float
    journal_bytes_per_token: float
    training_slowdown: float | None
    """0.1: a training loop in the same process takes 10 % longer."""


class Watch:
    """Resident memory of this process, once a second."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        process = psutil.Process()
        while not self._done.wait(1.0):
            self.samples.append(process.memory_info().rss)

    def growth(self) -> float:
        """Bytes, from the second tenth of the samples to the last one."""
        tenth = max(1, len(self.samples) // 10)
        first, last = self.samples[tenth : 2 * tenth] or self.samples[-1:], self.samples[-tenth:]
        return float(np.mean(last) - np.mean(first))


def measure(options: argparse.Namespace, url: str, key: str | None, folder: Path) -> Result:
    """Keeps all streams busy for the asked seconds."""
    section = RolloutSection(max_new_tokens=options.cap, concurrency=options.streams, commit_interval=options.commit)
    tokenizer = Tokenizer(options.tokenizer) if options.tokenizer else Letters()
    length = LengthComponent(LengthReward(maximum=10 * options.cap), None)
    journal = TimedJournal(folder / "journal.sqlite")
    controller = RolloutController(
        EnginePool([EngineClient(url, key)], concurrency=options.streams),
        journal,
        [length, FormatComponent(FormatReward(), length.measure, None)],
        intake=Intake(
            lambda place: _prompt(place, options),
            options.group,
            7,
            Admission(max(1, options.streams // options.group), STEPS_AHEAD - 1),
        ),
        tokenizer=tokenizer,
        render=lambda prompt: prompt.text,
        section=section,
    )
    alone = training_rate(lambda since: time.monotonic() - since > BASELINE_SECONDS) if options.beside else None
    controller.recover(0)
    controller.start()
    feeder = Feeder(controller, options)
    try:
        controller.begin(1)
        with Watch() as watch:
            started, cpu, before = time.monotonic(), time.process_time(), journal.durable_tokens
            feeder.start()
            beside = training_rate(lambda _: not feeder.is_alive()) if options.beside else None
            feeder.join()
            seconds, cpu = time.monotonic() - started, time.process_time() - cpu
            tokens = journal.durable_tokens - before
    finally:
        controller.close()
    size = sum(path.stat().st_size for path in folder.glob("journal.sqlite*"))
    return Result(
        streams=options.streams,
        seconds=seconds,
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        rollouts=feeder.rollouts,
        lag_p50=journal.lag(0.5),
        lag_p99=journal.lag(0.99),
        cpu_share=None if options.beside else cpu / seconds,
        memory_mib=max(watch.samples, default=0) / 2**20,
        memory_growth_mib=watch.growth() / 2**20 if watch.samples else 0.0,
        journal_bytes_per_token=size / max(1, journal.durable_tokens),
        training_slowdown=alone / beside - 1 if alone and beside else None,
    )


class Feeder(threading.Thread):
    """Consumes the groups of each step, until the time is over; the controller admits prompts some steps ahead."""

    def __init__(self, controller: RolloutController, options: argparse.Namespace) -> None:
        super().__init__(daemon=True)
        self.rollouts = 0
        self._controller = controller
        self._options = options

    def run(self) -> None:
        """Step after step."""
        started, step = time.monotonic(), 0
        while time.monotonic() - started < self._options.seconds:
            step += 1
            done = self._controller.collect(step)
            self._controller.mark_consumed(done, step)
            self.rollouts += sum(len(group.rollouts) for group in done)


def training_rate(over: Callable[[float], bool]) -> float:
    """Products per second of a loop like a training step's: some Python, then one thread of arithmetic, again and again."""
    torch.set_num_threads(1)
    a, b = torch.randn(384, 384), torch.randn(384, 384)
    started, count = time.monotonic(), 0
    while not over(started):
        for _ in range(20):
            torch.mm(a, b)
        count += 20
    return count / (time.monotonic() - started)


def _prompt(place: int, options: argparse.Namespace) -> Prompt:
    asked = LengthRange(max(1, options.median // 2), max(2, options.median))
    return Prompt(id=str(place), text=f"prompt {place}: write.", length=asked)


@contextmanager
def engine(options: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """(URL, token) of the asked engine, or of a synthetic one that lives as long as the block."""
    if options.url:
        yield options.url, os.environ.get(options.api_key_env)
        return
    near, far = multiprocessing.Pipe()
    law = Law(options.median, options.sigma, options.cap)
    start = multiprocessing.get_context("spawn").Process
    server = start(target=serve, args=(far, law, options.rate, options.delta), daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{near.recv()}", KEY
    finally:
        server.terminate()
        server.join()


def show(result: Result, options: argparse.Namespace) -> None:
    """A few lines to read."""
    asked = f", {options.streams * options.rate:.0f} offered" if not options.url and options.rate else ""
    print(f"{result.streams} streams, {result.seconds:.0f} s, {result.rollouts} rollouts, {result.tokens} tokens")
    print(f"to disk        {result.tokens_per_second:.0f} tokens/s{asked}")
    print(f"lag            p50 {result.lag_p50:.2f} s, p99 {result.lag_p99:.2f} s")
    if result.cpu_share is not None:
        print(f"controller     {result.cpu_share:.2f} of a core")
    if result.training_slowdown is not None:
        print(f"training loop  {100 * result.training_slowdown:+.0f} % longer beside it")
    print(f"memory         {result.memory_mib:.0f} MiB, growth {result.memory_growth_mib:+.0f} MiB")
    print(f"journal        {result.journal_bytes_per_token:.1f} bytes per token")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("streams", 256), ("group", 16), ("delta", 16), ("median", 4000), ("cap", 30_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("rate", 250.0), ("seconds", 60.0), ("sigma", 0.6), ("commit", 0.5)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--url", help="an engine that runs already; default: a synthetic one")
    parser.add_argument("--api-key-env", default="LWZ_ENGINE_TOKEN", help="environment variable with its token")
    parser.add_argument("--tokenizer", type=Path, help="folder of the engine's tokenizer; needed with --url")
    parser.add_argument("--folder", type=Path, help="a new folder that keeps the journal; default: a temporary one")
    parser.add_argument(
        "--beside", action="store_true", help="run a training loop in this process too: how much slower?"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    if options.url and not options.tokenizer:
        parser.error("--url needs --tokenizer, to render prompts for that engine")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=False)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, key = stack.enter_context(engine(options))
        result = measure(options, url, key, folder)
    show(result, options)
    if options.json:
        options.json.write_text(json.dumps(asdict(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
