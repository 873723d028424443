"""Measures how much rollouts slow down a training loop that runs in the main thread beside them, as in a trainer."""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import psutil
import torch
from rollout_load import BATCHES_AHEAD, MOST_BEHIND, Feeder, Server, asked, loop_cpu_seconds, offered
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers.convert_slow_tokenizer import bytes_to_unicode

from megatron_lwz.config import Config
from megatron_lwz.config.load import validate
from megatron_lwz.distributed import environment
from megatron_lwz.orchestrator.protocol import Host
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.training.rollouts import open_host
from megatron_lwz.types import WeightVersion

TURN_SECONDS = 3.0
SETTLE_SECONDS = 1.0
"""Time after which all data in flight is read and written."""
ENDLESS, PROMPTS = 1_000_000, 100
"""Number of steps and prompts of the run."""
SIZES = {"small kernels": (64, 64), "large kernels": (256, 512)}
"""Name → (hidden size, rows). With small kernels the interpreter limits a step, as when a GPU waits for launches."""


class TrainingLoop:
    """Forward, backward and Adam over four transformer layers, on one thread."""

    def __init__(self, hidden: int, rows: int) -> None:
        torch.set_num_threads(1)
        layer = nn.TransformerEncoderLayer(hidden, 4, 4 * hidden, batch_first=True, dropout=0.0)
        self._model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self._optimizer = torch.optim.Adam(self._model.parameters(), foreach=False)
        self._rows = torch.randn(1, rows, hidden)

    def step(self) -> None:
        """Runs one update."""
        self._optimizer.zero_grad()
        self._model(self._rows).square().mean().backward()
        self._optimizer.step()

    def seconds_per_step(self, seconds: float) -> float:
        """Returns the mean time per step, measured for `seconds`."""
        began, steps = time.perf_counter(), 0
        while (taken := time.perf_counter() - began) < seconds or not steps:
            self.step()
            steps += 1
        return taken / steps


class Beside:
    """Time per step under a load against that without it, for each of SIZES.

    The load is paused and resumed in turns of a few seconds, because a machine's own speed changes over minutes.
    """

    def __init__(self) -> None:
        self._loops = {name: TrainingLoop(*size) for name, size in SIZES.items()}
        self._ratios: dict[str, list[float]] = {name: [] for name in SIZES}
        self.seconds_held = 0.0
        """How long the load was paused."""

    def measure(self, seconds: float, hold: Callable[[bool], None]) -> None:
        """Measures while a load runs that `hold(True)` pauses. The load runs for at least `seconds` in all."""
        for loop in self._loops.values():
            loop.seconds_per_step(TURN_SECONDS)  # warm
        end = time.monotonic() + seconds
        while time.monotonic() < end + self.seconds_held or len(self._ratios[next(iter(SIZES))]) < 2:
            for name, loop in self._loops.items():
                began = time.monotonic()
                hold(True)
                alone = self._turn(loop)
                hold(False)
                self.seconds_held += time.monotonic() - began
                self._ratios[name].append(self._turn(loop) / alone)

    def _turn(self, loop: TrainingLoop) -> float:
        loop.seconds_per_step(SETTLE_SECONDS)
        return loop.seconds_per_step(TURN_SECONDS)

    def slowdown(self) -> dict[str, tuple[float, float]]:
        """Returns name → (mean, its standard error): 0.1 where a step takes 10 % longer beside the load."""
        return {name: (mean(found) - 1, stdev(found) / len(found) ** 0.5) for name, found in self._ratios.items()}


@dataclass(frozen=True)
class Result:
    """Results of one run beside a training loop.

    Tokens and seconds cover the time when the engine wrote; shares are of a core.
    """

    controller: str
    streams: int
    seconds: float
    tokens_per_second: float
    offered: float | None
    rollouts: int
    controller_share: float
    """Share of the process, or of the event loop's thread alone."""
    engine_share: float
    training_slowdown: dict[str, tuple[float, float]]
    """Slowdown by kind of step, with the mean's standard error. 0.1: a step takes 10 % longer."""

    def rows(self) -> list[tuple[str, str]]:
        """Returns (name, value) pairs for display."""
        most = f", {self.offered:,.0f} offered" if self.offered else ""
        return [
            ("streams", f"{self.streams}, for {self.seconds:.0f} s: {self.rollouts} rollouts done"),
            ("tokens per second to disk", f"{self.tokens_per_second:,.0f}{most}"),
            ("cores", f"the {self.controller} {self.controller_share:.2f}, the engine {self.engine_share:.2f}"),
        ] + [
            (f"training step, {name}", f"{100 * slower:+.1f} % ± {100 * error:.1f}")
            for name, (slower, error) in self.training_slowdown.items()
        ]


def measure(options: argparse.Namespace, server: Server, folder: Path) -> Result:
    """Keeps all streams busy for `options.seconds`, in a run like the main job's, but without its policy."""
    beside, config = Beside(), run_config(options, server.url, folder)
    run = RunPaths(config.run.dir)
    with environment.lent(config.rollout.api_key_env, server.key or ""), hosted(config, run) as host:

        def take(step: int) -> int:
            rollouts = sum(len(experience.batch) for experience in host.experience(step))
            host.trained(step)
            return rollouts

        feeder = Feeder(take)
        feeder.start()
        busy = partial(controller_cpu_seconds, options.controller)
        before = (time.monotonic(), busy(), server.cpu_seconds(), durable_tokens(run.journal))
        beside.measure(options.seconds, partial(hold, server))
        after = (time.monotonic(), busy(), server.cpu_seconds(), durable_tokens(run.journal))
        feeder.over.set()
        feeder.join()
    seconds, controller, engine, tokens = (end - begin for begin, end in zip(before, after, strict=True))
    seconds -= beside.seconds_held
    return Result(
        controller=options.controller,
        streams=options.streams,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        offered=offered(options),
        rollouts=feeder.rollouts,
        controller_share=controller / seconds,
        engine_share=engine / seconds,
        training_slowdown=beside.slowdown(),
    )


@contextmanager
def hosted(config: Config, run: RunPaths) -> Iterator[Host]:
    """Yields rank 0's rollout host, connected."""
    run.root.mkdir()
    with open_host(config, run, 0, lambda _: None) as host:
        host.connect(WeightVersion(0), run.weights)
        yield host


def run_config(options: argparse.Namespace, url: str, folder: Path) -> Config:
    """Returns a config in which length and format are scored, as in a run without a judge; steps take what is ready."""
    rows = [{"id": f"p{i}", "prompt": f"prompt {i}: write.", "length": asdict(asked(options))} for i in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return validate(
        {
            "run": {"dir": str(folder / "run")},
            "model": {"tokenizer": str(options.tokenizer or write_tokenizer(folder / "tokenizer"))},
            "training": {"steps": ENDLESS, "prompts_per_step": max(1, options.streams // options.group)},
            "data": {"prompts": str(folder / "prompts.jsonl"), "template": "bare", "max_prompt_tokens": 64},
            "rollout": {
                "controller": options.controller,
                "urls": [url],
                "max_new_tokens": options.cap,
                "concurrency": options.streams,
                "commit_interval": options.commit,
                "max_staleness": MOST_BEHIND,
                "over_sampling": BATCHES_AHEAD,
            },
            "reward": {"length": {"maximum": 10 * options.cap}},
            "grpo": {"group_size": options.group},
        }
    )


def write_tokenizer(folder: Path) -> Path:
    """Writes a tokenizer with one token per byte, numbered by the byte: the synthetic engine writes letters."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(vocab={piece: byte for byte, piece in bytes_to_unicode().items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


def hold(server: Server, still: bool) -> None:
    """Pauses the engine (`still`), or resumes it."""

    async def tell() -> None:
        async with EngineClient(server.url, server.key) as client:
            await (client.pause() if still else client.resume())

    asyncio.run(tell())


def controller_cpu_seconds(controller: str) -> float:
    """Returns the CPU time of the controller's process, or of its thread, so far."""
    if controller == "thread":
        return loop_cpu_seconds()
    children = psutil.Process().children()
    (process,) = (child for child in children if "megatron_lwz.cli.rollout_host" in child.cmdline())
    return sum(process.cpu_times()[:2])


def durable_tokens(journal: Path) -> int:
    """Returns the number of tokens in the journal on disk."""
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        return db.execute("SELECT coalesce(sum(length(tokens)), 0) / 4 FROM deltas").fetchone()[0]
