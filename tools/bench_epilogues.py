"""Times the passes around the matrix products: statistics and gradient of one tile of logits, by all implementations.

    python tools/bench_epilogues.py [--tile 1024x152064] [--json out.json]

Both passes are bound by memory, so their ceiling is a copy of the tile, timed in the same run: `of copy` compares bytes
per second. Implementations that cannot run on this machine are left out. `cuda` runs on a Hopper GPU after
`lwz build-cuda`. The implementations take turns. The fastest repeat counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from megatron_lwz.kernels import dispatch
from megatron_lwz.kernels.linear_logprob import implementations
from megatron_lwz.kernels.linear_logprob.epilogue import Epilogue, RowGradients, combine, empty_statistics

Job = tuple[str, float, Callable[[], object]]
"""(name, bytes it must move, the call)."""


class Tile:
    """Logits z [n, v], restored before each call that overwrites them; labels, weights, and the gradient's dtype."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.logits = (4 * torch.randn(rows, columns, generator=generator)).to(device)
        self.z = self.logits.clone()
        self.labels = torch.randint(0, columns, (rows,), generator=generator).to(device)
        self.slope = torch.randn(rows, generator=generator).to(device)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        running = empty_statistics(rows, dtype=torch.float32, device=device)
        implementations.epilogue("torch").statistics(self.z, self.labels, 1.0, running)
        self.logprob, _, lse, mean = combine(running[None])
        self.gradients = RowGradients(lse, mean, self.slope, None, None)
        self.with_entropy = RowGradients(lse, mean, self.slope, self.slope, None)

    def restore(self) -> None:
        """Restores the original logits."""
        self.z.copy_(self.logits)


def jobs(tile: Tile) -> list[Job]:
    """Returns the jobs to time.

    The gradient's time includes restoring the logits; the copy's time is subtracted later.
    """
    size = tile.z.numel() * 4
    both = size + tile.z.numel() * tile.dtype.itemsize
    found: list[Job] = [("copy", 2 * size, tile.restore)]
    for name in dispatch.usable():
        if name == "reference" or (name == "cpp" and tile.z.is_cuda):
            continue
        epilogue = implementations.epilogue(name)
        running = empty_statistics(len(tile.z), dtype=torch.float32, device=tile.z.device)
        found.append((f"{name}: statistics", size, partial(epilogue.statistics, tile.z, tile.labels, 1.0, running)))
        for label, rows in (("gradient", tile.gradients), ("gradient with entropy", tile.with_entropy)):
            found.append((f"{name}: {label}", both, partial(spend, tile, epilogue, rows)))
    return found


def spend(tile: Tile, epilogue: Epilogue, rows: RowGradients) -> Tensor:
    """Computes the gradient of freshly restored logits."""
    tile.restore()
    return epilogue.gradient(tile.z, tile.labels, 1.0, rows, tile.dtype)


def measure(tile: Tile, repeats: int) -> dict[str, dict[str, float]]:
    """Returns per job: seconds (without the restoring copy), nanoseconds per logit, gigabytes per second."""
    todo = jobs(tile)
    best = {name: float("inf") for name, _, _ in todo}
    for _ in range(repeats):
        for name, _, call in todo:
            best[name] = min(best[name], seconds_of(call, tile.z.device))
    figures = {}
    for name, size, _ in todo:
        seconds = max(best[name] - (best["copy"] if "gradient" in name else 0.0), 1e-9)
        figures[name] = {
            "seconds": seconds,
            "ns_per_logit": seconds / tile.z.numel() * 1e9,
            "gigabytes_per_second": size / seconds / 1e9,
        }
    return figures


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of one call on an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Parses the command line, measures, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--tile", default="1024x152064" if gpu else "256x32768", help="rows x columns")
    parser.add_argument("--repeats", type=int, default=10 if gpu else 3)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows, columns = (int(number) for number in options.tile.split("x"))
    figures = measure(Tile(rows, columns, torch.device("cuda" if gpu else "cpu")), options.repeats)
    table = Table("pass", "ns per logit", "GB/s", "of copy", title=f"tile {options.tile}, fp32 logits")
    for name, figure in figures.items():
        rate = figure["gigabytes_per_second"]
        share = rate / figures["copy"]["gigabytes_per_second"]
        table.add_row(name, f"{figure['ns_per_logit']:.3f}", f"{rate:.1f}", f"{share:.2f}")
    Console(width=100).print(table)
    if options.json:
        machine = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
        options.json.parent.mkdir(parents=True, exist_ok=True)
        made = {"machine": machine, "torch": torch.__version__, "tile": options.tile, "figures": figures}
        options.json.write_text(json.dumps(made, indent=1) + "\n")
        print(f"figures: {options.json}")


if __name__ == "__main__":
    main()
