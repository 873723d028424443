#!/usr/bin/env python
"""Measures the cost of a checkpoint: how long training waits, asynchronous and not, and how long until it is on disk.

    python tools/bench_checkpoint.py [--hidden 512] [--layers 8] [--vocabulary 32768] [--repeats 5] [--folder DIR]
    torchrun --nproc-per-node 2 tools/bench_checkpoint.py …          data parallel, state sharded over the ranks

The model is a Qwen2 with random weights, fp32, with its Adam state. Nothing else runs while the asynchronous save is
written, so the last columns show what the disk and one thread need. The first save of each kind is not counted. On a
busy machine compare the CPU seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import environment, exchange, launch
from megatron_lwz.run_paths import step_name
from megatron_lwz.training.checkpoint_saver import CheckpointSaver
from megatron_lwz.training.initial import build_train_state


def main() -> None:
    """Measures both kinds of save and prints a table, on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 512), ("layers", 8), ("vocabulary", 32_768), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = [measure(options, Path(folder), asynchronous) for asynchronous in (False, True)]
    if environment.rank() == 0:
        print(
            "| save | MiB | training waits, s | CPU s of it | on disk after, s | CPU s in all |\n|---|---|---|---|---|---|"
        )
        for name, (size, times) in zip(("waiting", "asynchronous"), rows, strict=True):
            print(f"| {name} | {size / 2**20:.0f} | {' | '.join(f'{seconds:.2f}' for seconds in times)} |")
    launch.shutdown()


def config_of(options: argparse.Namespace, asynchronous: bool) -> Config:
    """Returns the config of a Qwen2 of the requested size."""
    architecture = {
        "hidden_size": options.hidden, "intermediate_size": 4 * options.hidden, "num_hidden_layers": options.layers,
        "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": options.vocabulary,
    }  # fmt: skip
    sections = {"training": {"precision": "fp32"}, "checkpoint": {"asynchronous": asynchronous, "keep": 1}}
    return validate({"model": {"architecture": architecture}, **sections})


def measure(options: argparse.Namespace, folder: Path, asynchronous: bool) -> tuple[int, list[float]]:
    """Returns (bytes, medians of: seconds and CPU seconds that `save` took, seconds and CPU seconds until complete)."""
    config = config_of(options, asynchronous)
    launch.initialize(config)
    folder = Path(exchange.broadcast_json(str(folder)), str(asynchronous))
    state = build_train_state(config)
    taken: list[list[float]] = []
    with CheckpointSaver(state, folder) as saver:
        for _ in range(options.repeats + 1):
            state.step += 1
            dist.barrier()
            begin, cpu = time.perf_counter(), time.process_time()
            saver.save({})
            waited = [time.perf_counter() - begin, time.process_time() - cpu]
            saver.wait()
            taken.append([*waited, time.perf_counter() - begin, time.process_time() - cpu])
    size = sum(path.stat().st_size for path in (folder / step_name(state.step)).iterdir())
    dist.barrier()
    return size, [statistics.median(column) for column in zip(*taken[1:], strict=True)]


if __name__ == "__main__":
    main()
