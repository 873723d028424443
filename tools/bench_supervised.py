#!/usr/bin/env python
"""Pretraining steps of one process beside a plain transformers + torch loop: loss, CPU seconds, tokens/s, peak memory.

    python tools/bench_supervised.py [--vocabulary 1024 4096 151936] [--hidden 64] [--layers 2] [--sequences 8] [--length 256] …

Both sides use the same random weights, the same documents of one length (so that the plain loop wastes nothing on
padding), the same AdamW, and fp32. A third side computes the bare matrix products of such a step and its attention,
forward and backward, by torch's own choice of library. Each side runs in a separate process, one after the other, `--repeats`
times in turns. Peak memory is the process's maximum resident set, and the part of it beyond the memory that was resident before
the first step. On a busy machine compare the CPU seconds, not the tokens/s.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F

from megatron_lwz.units import KIB, MIB

LR, WEIGHT_DECAY = 1e-3, 0.1
HEADS, GROUPS = 4, 2


def main() -> None:
    """Runs both sides in turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[151_936])
    for name, default in (("hidden", 64), ("layers", 2), ("sequences", 8), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=4, help="timed steps, after one that is not")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        (options.vocabulary,) = options.vocabulary
        print(json.dumps(measure(options)))
        return
    print(
        "| vocabulary | side | CPU s per step | ratio | tokens/s | peak memory, MiB | of it in the steps, MiB | last loss |"
    )
    print("|---|---|---|---|---|---|---|---|")
    differences = [compare(vocabulary, options) for vocabulary in options.vocabulary]
    print("\n*ratio*: our CPU seconds over those of the side.")
    print(f"largest difference of a step's loss: {max(differences):.1e}")


def compare(vocabulary: int, options: argparse.Namespace) -> float:
    """Runs all sides in turns and prints their rows. Returns the largest difference between losses of a step."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        size = argparse.Namespace(**{**vars(options), "vocabulary": vocabulary})
        write_model(Path(folder), size)
        for _ in range(options.repeats):
            for side in SIDES:
                settings = ("hidden", "layers", "sequences", "length", "steps", "threads")
                numbers = [word for name in settings for word in (f"--{name}", str(getattr(options, name)))]
                command = [sys.executable, __file__, *numbers, "--vocabulary", str(vocabulary), "--side", side]
                done = subprocess.run([*command, "--model", folder], capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{side}: {done.stderr}")
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
    show(vocabulary, found)
    pairs = zip(*(found[side][-1]["losses"] for side in ("ours", "plain")), strict=True)
    return max(abs(a - b) for a, b in pairs)


def show(vocabulary: int, found: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the medians over the repeats of CPU seconds and tokens/s, the largest peak, the last loss."""
    spent = {side: statistics.median(row["cpu"] for row in rows) for side, rows in found.items()}
    for side, rows in found.items():
        rate = statistics.median(row["tokens_per_second"] for row in rows)
        peak, grown = (max(row[key] for row in rows) / MIB for key in ("peak", "grown"))
        loss = rows[-1]["losses"][-1]
        print(
            f"| {vocabulary:,} | {side} | {spent[side]:.2f} | {spent['ours'] / spent[side]:.2f} | {rate:.0f} | {peak:.0f} "
            f"| {grown:.0f} | {'–' if loss is None else format(loss, '.6f')} |",
            flush=True,
        )


def write_model(folder: Path, options: argparse.Namespace) -> None:
    """Writes the common initial model: a Qwen2 with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).float().save_pretrained(folder)


def batch_of(options: argparse.Namespace, step: int) -> torch.Tensor:
    """Returns the documents of one step, [sequences, length + 1] int64."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, options.vocabulary, (options.sequences, options.length + 1), generator=generator)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measures one side: losses, tokens/s and bytes."""
    step = SIDES[options.side](options)
    resident = psutil.Process().memory_info().rss
    losses, seconds, cpu = [], [], []
    for index in range(options.steps + 1):
        tokens = batch_of(options, index)
        begun, worked = time.perf_counter(), time.process_time()
        losses.append(step(tokens))
        seconds.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - worked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    rate = options.sequences * options.length / statistics.median(seconds[1:])
    spent = statistics.median(cpu[1:])
    return {"losses": losses, "tokens_per_second": rate, "cpu": spent, "peak": peak, "grown": peak - resident}


def products(options: argparse.Namespace) -> Callable[[torch.Tensor], float | None]:
    """Returns what no step can do without: three products per weight, and attention, forward and backward."""
    hidden, width = options.hidden, options.hidden // HEADS
    shapes = [
        *options.layers
        * [
            (hidden + 2 * GROUPS * width, hidden),  # queries, keys and values
            (hidden, hidden),
            (2 * 4 * hidden, hidden),  # gate and up
            (hidden, 4 * hidden),
        ],
        (options.vocabulary, hidden),
    ]
    weights = [torch.randn(shape) for shape in shapes]
    rows = options.sequences * options.length
    query, key, value = (
        torch.randn(options.sequences, HEADS, options.length, width, requires_grad=True) for _ in range(3)
    )

    def step(_tokens: torch.Tensor) -> None:
        for weight in weights:
            given = torch.ones(rows, weight.shape[1])
            made = given @ weight.t()
            made @ weight
            made.t() @ given
        for _ in range(options.layers):
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            torch.autograd.grad(attended.sum(), (query, key, value))

    return step


def plain(options: argparse.Namespace) -> Callable[[torch.Tensor], float]:
    """Returns the step of the plain loop: transformers' own loss and torch's AdamW, the whole batch at once."""
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(options.model).float()
    small = {p for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name}
    groups = [
        {"params": [p for p in model.parameters() if p not in small], "weight_decay": WEIGHT_DECAY},
        {"params": list(small), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)

    def step(tokens: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def ours(options: argparse.Namespace) -> Callable[[torch.Tensor], float]:
    """Returns the step of `pretrain` with one micro-batch."""
    from megatron_lwz.config import validate
    from megatron_lwz.data.examples import supervised_batch
    from megatron_lwz.distributed import launch
    from megatron_lwz.training.batching import make_micro_batches
    from megatron_lwz.training.initial import build_train_state
    from megatron_lwz.training.step import train_step
    from megatron_lwz.training.supervised import Objective

    size = options.sequences * options.length
    training = {"precision": "fp32", "tokens_per_micro_batch": size, "steps": options.steps + 1}
    tree = {"model": {"hf": options.model}, "training": training}
    config = validate(tree | {"optimizer": {"lr": LR, "weight_decay": WEIGHT_DECAY}})
    launch.initialize(config)
    state, objective = build_train_state(config), Objective(0.0)

    def step(tokens: torch.Tensor) -> float:
        trained = torch.arange(options.length + 1) > 0
        batch = supervised_batch([(str(index), row, trained) for index, row in enumerate(tokens)], "token")
        micro_batches = make_micro_batches(batch.sequences, config, batch.weights)
        result = train_step(
            state, micro_batches, objective.loss, batch.denominator, objective.token_loss, accept=lambda *_: True
        )
        state.step += 1
        return result.loss

    return step


SIDES: dict[str, Callable[[argparse.Namespace], Callable[[torch.Tensor], float | None]]] = {
    "ours": ours,
    "plain": plain,
    "products": products,
}


if __name__ == "__main__":
    main()
