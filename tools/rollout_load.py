"""Code shared by the modes of bench_rollout.py: an engine under load, a controller over a timed journal, monitors."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rate_engine import EOS, KEY, Law, serve

from megatron_lwz.config.sections import FormatReward, LengthReward, RolloutSection
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.rewards.format import FormatComponent
from megatron_lwz.rewards.length import LengthComponent
from megatron_lwz.rollout.admission import Admission, Intake
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.controller import RolloutController
from megatron_lwz.rollout.drafts import Draft
from megatron_lwz.rollout.events import StreamEvent
from megatron_lwz.rollout.journal import Journal
from megatron_lwz.rollout.pool import EnginePool
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import LengthRange, Prompt, TokenDelta

BATCHES_AHEAD, MOST_BEHIND = 2.0, 50
"""Batches admitted beyond the awaited one, and the most steps by which their groups may overtake each other.

With these values no stream waits for a straggler.
"""


class Letters:
    """The synthetic engine's tokenizer: one token per character code."""

    eos_ids = frozenset({EOS})

    def encode(self, text: str) -> list[int]:
        """Returns the token ids."""
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Returns the text."""
        return "".join(map(chr, ids)).replace(chr(EOS), "")


class TimedJournal(Journal):
    """A journal that counts, per millisecond, how long deltas wait until they are durable."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lags = np.zeros(60_000, np.int64)
        self.durable_tokens = 0
        self._arrived: list[tuple[float, int]] = []

    def extend(self, draft: Draft, start: int, delta: TokenDelta) -> None:
        """Records the arrival of the delta, then works like the journal's method."""
        super().extend(draft, start, delta)
        self._arrived.append((time.monotonic(), len(delta.tokens)))

    def commit(self) -> None:
        """Works like the journal's method, and records the lag of the deltas that became durable."""
        arrived, self._arrived = self._arrived, []
        super().commit()
        now = time.monotonic()
        for since, tokens in arrived:
            self.lags[min(len(self.lags) - 1, int(1000 * (now - since)))] += 1
            self.durable_tokens += tokens

    def lag(self, share: float) -> float:
        """Returns the number of seconds within which this share of the deltas was durable."""
        counts = self.lags.cumsum()
        return float(np.searchsorted(counts, share * counts[-1])) / 1000


class TimedClient(EngineClient):
    """A client that adds up the seconds in which its streams are open: the time that engine slots are occupied."""

    def __init__(self, url: str, token: str | None) -> None:
        super().__init__(url, token)
        self.busy = 0.0

    async def stream(self, *arguments: Any, **options: Any) -> AsyncGenerator[StreamEvent, None]:
        """Works like the client's method."""
        began = time.monotonic()
        try:
            async for event in super().stream(*arguments, **options):
                yield event
        finally:
            self.busy += time.monotonic() - began


@dataclass
class Load:
    """A controller that is ready to start, with its journal and client."""

    controller: RolloutController
    journal: TimedJournal
    client: TimedClient


def make_load(options: argparse.Namespace, url: str, key: str | None, folder: Path, admission: Admission) -> Load:
    """Builds a controller that scores length and format, as in a run without a judge. The journal lies in `folder`."""
    section = RolloutSection(max_new_tokens=options.cap, concurrency=options.streams, commit_interval=options.commit)
    length = LengthComponent(LengthReward(maximum=10 * options.cap), None)
    journal, client = TimedJournal(RunPaths(folder).journal), TimedClient(url, key)
    controller = RolloutController(
        EnginePool([client], concurrency=options.streams),
        journal,
        [length, FormatComponent(FormatReward(), length.measure, None)],
        intake=Intake(lambda place: _prompt(place, options), options.group, 7, admission),
        tokenizer=Tokenizer(options.tokenizer) if options.tokenizer else Letters(),
        render=lambda prompt: prompt.text,
        section=section,
    )
    controller.recover(0)
    return Load(controller, journal, client)


def _prompt(place: int, options: argparse.Namespace) -> Prompt:
    return Prompt(id=str(place), text=f"prompt {place}: write.", length=asked(options))


def asked(options: argparse.Namespace) -> LengthRange:
    """Returns the length that prompts ask for."""
    return LengthRange(max(1, options.median // 2), max(2, options.median))


def offered(options: argparse.Namespace) -> float | None:
    """Returns tokens per second of a synthetic engine with all streams busy; None where the rate is not known."""
    return options.streams * options.rate if not options.url and options.rate else None


class Feeder(threading.Thread):
    """Takes the batch of each step, as rank 0 does, until `over`.

    `take` takes a batch and returns its number of rollouts.
    """

    def __init__(self, take: Callable[[int], int]) -> None:
        super().__init__(daemon=True)
        self.rollouts = 0
        self.over = threading.Event()
        self._take = take

    def run(self) -> None:
        """Takes one batch after another."""
        step = 0
        while not self.over.is_set():
            step += 1
            self.rollouts += self._take(step)


@dataclass(frozen=True)
class Server:
    """An engine under load. `process` is None for an engine that this tool did not start."""

    url: str
    key: str | None
    process: psutil.Process | None

    def cpu_seconds(self) -> float:
        """Returns the CPU time that it has used so far; 0 for an engine that this tool did not start."""
        return sum(self.process.cpu_times()[:2]) if self.process is not None else 0.0


@contextmanager
def engine(options: argparse.Namespace) -> Iterator[Server]:
    """Yields the requested engine, or a synthetic one in a separate process that ends with the block."""
    if options.url:
        yield Server(options.url, os.environ.get(options.api_key_env), None)
        return
    near, far = multiprocessing.Pipe()
    law = Law(options.median, options.sigma, options.cap)
    start = multiprocessing.get_context("spawn").Process
    child = start(target=serve, args=(far, law, options.rate, options.delta), daemon=True)
    child.start()
    try:
        yield Server(f"http://127.0.0.1:{near.recv()}", KEY, psutil.Process(child.pid))
    finally:
        child.terminate()
        child.join()


class Watch:
    """Samples the resident memory of this process once a second."""

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
        """Returns the growth in bytes from the second tenth of the samples to the last one."""
        tenth = max(1, len(self.samples) // 10)
        first, last = self.samples[tenth : 2 * tenth] or self.samples[-1:], self.samples[-tenth:]
        return float(np.mean(last) - np.mean(first))


def loop_cpu_seconds() -> float:
    """Returns the CPU time of the controller's thread so far."""
    ids = {thread.native_id for thread in threading.enumerate() if thread.name == "rollouts"}
    return sum(thread.user_time + thread.system_time for thread in psutil.Process().threads() if thread.id in ids)
