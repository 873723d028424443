#!/usr/bin/env python
"""Throughput of the reward path: finished rollouts in, scores out, called as the controller calls it.

    python tools/bench_rewards.py [--rollouts 256] [--group 32] [--tokens 14000] [--repeats 3] [--tokenizer DIR] [--latency 0]

The texts are made up, half English, half Chinese, of about `--tokens` tokens (1.35 a word, 0.8 a character). All groups
are scored at the same time. Judges are called over HTTP: a server in a separate process answers `--latency` seconds
after it has read the question. CPU seconds are those of this process, so other work on the machine does not disturb
them. `held up` is the longest CPU time that the event loop's thread, which also reads the rollouts' streams, spent
without a break. The best of the repeats counts. `guard` is the cost of the stream guard on that thread, detokenisation
included, in deltas of 16 tokens. Without --tokenizer it uses a byte-level BPE of 8,000 tokens, trained on the texts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tokenizers
import torch
from aiohttp import web
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_lwz.algorithms.advantages import component_advantages, gradient_shares
from megatron_lwz.config import validate
from megatron_lwz.config.sections import FormatReward, JudgeReward, JudgeSection, LengthReward
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.http.ports import bind
from megatron_lwz.rewards.format import FormatComponent
from megatron_lwz.rewards.guard import response_guards
from megatron_lwz.rewards.judge_client import Judge
from megatron_lwz.rewards.judge_components import judge_components
from megatron_lwz.rewards.length import LengthComponent, LengthMeter
from megatron_lwz.rollout.guard import GuardedRollout
from megatron_lwz.types import FinishReason, LengthRange, Prompt, RewardFn, Rollout

Group = tuple[Prompt, list[Rollout]]
TOKENS_PER_WORD, TOKENS_PER_CHARACTER = 1.35, 0.8
KEY = "benchmark"


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rollouts", 256), ("group", 32), ("tokens", 14_000), ("repeats", 3), ("concurrency", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that the judge takes per question")
    parser.add_argument("--tokenizer", type=Path, help="count the thinking's tokens too, as a run does")
    options = parser.parse_args()
    torch.set_num_threads(1)
    groups = make_groups(options)
    tokens = options.rollouts * options.tokens
    print(f"{options.rollouts} rollouts of {options.tokens} tokens in groups of {options.group}: {tokens} tokens")
    print(f"{'':28}{'seconds':>9}{'CPU s':>8}{'tokens/s':>12}{'tokens/CPU s':>14}{'held up, ms':>13}")
    tokenizer = Tokenizer(options.tokenizer) if options.tokenizer else None
    length = LengthComponent(LengthReward(maximum=10 * options.tokens), tokenizer)
    form = FormatComponent(FormatReward(), length.measure, tokenizer)
    pipe, far = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(far, options.latency), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{pipe.recv()}"
    try:
        cases: dict[str, Sequence[RewardFn | JudgeReward]] = {
            "length": [length],
            "format": [form],
            "rubric": [JudgeReward(kind="rubric")],
            "pairwise, 4 opponents": [JudgeReward(kind="pairwise")],
            "length + format + rubric": [length, form, JudgeReward(kind="rubric")],
        }
        for name, rewards in cases.items():
            show(name, tokens, [asyncio.run(score(groups, rewards, url, options)) for _ in range(options.repeats)])
    finally:
        server.terminate()
    few = [(prompt, rollouts[:2]) for prompt, rollouts in groups]
    tokens_of_few = 2 * len(groups) * options.tokens
    show("length while it is written", tokens_of_few, [meter(few, options.tokens) for _ in range(options.repeats)])
    reader = tokenizer or train_tokenizer(few)
    written = [(prompt, reader.encode(rollout.text)) for prompt, rollouts in few for rollout in rollouts]
    held = sum(len(tokens) for _, tokens in written)
    found = [guard(written, reader.decode) for _ in range(options.repeats)]
    show("guard while it is written", held, found)
    print(f"{'':28}{1e6 * min(cpu for _, cpu, _ in found) / held:.2f} µs of CPU per token")
    seconds = min(compose(options) for _ in range(options.repeats + 1))
    print(f"columns to advantages and the gradient's shares: {1000 * seconds:.1f} ms")


async def score(
    groups: Sequence[Group], rewards: Sequence[RewardFn | JudgeReward], url: str, options: argparse.Namespace
) -> tuple[float, float, float]:
    """Scores all groups at once; returns (seconds, CPU seconds, longest time held up)."""
    section = JudgeSection(url=url, model="bench", concurrency=options.concurrency)
    judge = Judge.as_reward(section, KEY)
    columns = [
        reward if not isinstance(reward, JudgeReward) else judge_components([reward], judge)[0] for reward in rewards
    ]
    held = asyncio.create_task(longest_hold())
    await asyncio.sleep(0.05)
    wall, cpu = time.perf_counter(), time.process_time()
    found = await asyncio.gather(*(column.score(*group) for group in groups for column in columns))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await asyncio.sleep(0.02)
    held.cancel()
    assert all(score.valid for scores in found for score in scores), judge.counters
    await judge.close()
    return wall, cpu, await held


async def longest_hold() -> float:
    """Returns, when cancelled, the most CPU seconds of this thread between two wake-ups that should be 5 ms apart."""
    longest, last = 0.0, time.thread_time()
    try:
        while True:
            await asyncio.sleep(0.005)
            now = time.thread_time()
            longest, last = max(longest, now - last), now
    except asyncio.CancelledError:
        return longest


def meter(groups: Sequence[Group], tokens: int) -> tuple[float, float, float]:
    """Feeds all rollouts at once to the counter that reads a stream, in pieces of about one token."""
    texts = [rollout.text for _, rollouts in groups for rollout in rollouts]
    meters = [LengthMeter() for _ in texts]
    size = max(1, len(texts[0]) // tokens)
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, max(map(len, texts)), size):
        for one, text in zip(meters, texts, strict=True):
            one.feed(text[start : start + size])
    return time.perf_counter() - wall, time.process_time() - cpu, 0.0


def guard(written: Sequence[tuple[Prompt, list[int]]], decode: Callable[..., str]) -> tuple[float, float, float]:
    """Runs all rollouts at once through the guard with its default config, in observing mode."""
    config = validate({"rollout": {"guard": {"mode": "observe"}}})
    make, section = response_guards(config), config.rollout
    stops = section.stop
    rollouts = [
        GuardedRollout(make(prompt), section.guard, decode=decode, stops=stops, ends=(), limit=10**9)
        for prompt, _ in written
    ]
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, max(len(tokens) for _, tokens in written), 16):
        for rollout, (_, tokens) in zip(rollouts, written, strict=True):
            rollout.take(tokens[start : start + 16])
    return time.perf_counter() - wall, time.process_time() - cpu, 0.0


def train_tokenizer(groups: Sequence[Group]) -> Reader:
    """Trains a byte-level BPE on the texts."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([rollout.text for _, rollouts in groups for rollout in rollouts], trainer)
    return Reader(tokenizer)


class Reader:
    """A tokenizer of the `tokenizers` library with the interface of our tokenizers."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.decode = tokenizer.decode
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Returns the token ids."""
        return self._tokenizer.encode(text).ids


def compose(options: argparse.Namespace) -> float:
    """Returns the seconds from the columns of three components to advantages and the gradient's shares."""
    shape = (options.rollouts // options.group, options.group)
    rewards = torch.rand(*shape, 3, generator=torch.Generator().manual_seed(0))
    there = torch.ones(*shape, 3, dtype=torch.bool)
    begin = time.perf_counter()
    parts = component_advantages(
        rewards, there, there[..., 0], weights=torch.ones(3), normalizer="zscore", combine="advantages", std_floor=1e-6
    )
    gradient_shares(parts, rewards[..., 0], torch.zeros(shape, dtype=torch.int64), 4)
    return time.perf_counter() - begin


def show(name: str, tokens: int, found: Sequence[tuple[float, float, float]]) -> None:
    """Prints one line: the best of each figure."""
    wall, cpu, held = (min(column) for column in zip(*found, strict=True))
    print(f"{name:28}{wall:9.3f}{cpu:8.2f}{tokens / wall:12.0f}{tokens / cpu:14.0f}{1000 * held:13.0f}", flush=True)


def make_groups(options: argparse.Namespace) -> list[Group]:
    """Creates prompts with rollouts of about the requested number of tokens.

    A fifth of the rollouts have a thinking part.
    """
    noise = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(noise.choices(letters, k=noise.randint(2, 9))) for _ in range(5000)]
    signs = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 3000))
    groups = []
    for number in range(options.rollouts // options.group):
        chinese = number % 2 == 1
        units = round(options.tokens / (TOKENS_PER_CHARACTER if chinese else TOKENS_PER_WORD))
        prompt = Prompt(f"p{number}", "写一条河" if chinese else "Write about a river.", LengthRange(units // 2, units))

        def text(count: int, chinese: bool = chinese) -> str:
            unit = noise.choices(signs if chinese else words, k=count)
            gap, line = ("", "。\n") if chinese else (" ", ".\n\n")
            return line.join(gap.join(unit[start : start + 80]) for start in range(0, count, 80))

        rollouts = [
            Rollout(f"{number}-{k}", prompt.id, k, (), (0,) * options.tokens, (), (), FinishReason.STOP,
                    f"<think>{text(units // 5)}</think>\n<answer>{text(units - units // 5)}</answer>", "</answer>")
            for k in range(options.group)
        ]  # fmt: skip
        groups.append((prompt, rollouts))
    return groups


def serve(pipe: Connection, latency: float) -> None:
    """Serves a judge that gives every text a good score; sends its port through `pipe`."""
    verdict = json.dumps({"reason": "fine", **{str(number): 7 for number in range(1, 7)}, "winner": "tie"})

    async def answer(request: web.Request) -> web.Response:
        await request.json()
        await asyncio.sleep(latency)
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        choice = {"message": {"content": verdict}, "finish_reason": "stop"}
        return web.json_response({"model": "bench", "choices": [choice], "usage": usage})

    handler: Callable[[web.Request], Awaitable[Any]] = answer
    app = web.Application(client_max_size=64 << 20)
    app.add_routes([web.post("/v1/chat/completions", handler)])
    listener = bind("127.0.0.1", 0)
    pipe.send(listener.getsockname()[1])
    web.run_app(app, sock=listener, print=None)


if __name__ == "__main__":
    main()
