"""Times our log-prob op beside plain torch and measures what memory each takes on top of its inputs.

    python tools/bench_kernels.py [--shapes 2048x896x151936,…] [--threads 2] [--repeats 3] [--json out.json]

A shape is tokens × hidden × vocabulary. `plain` is what one writes without an op: whole logits, log_softmax, gather.
`extra` is the peak beyond the inputs (resident memory on a CPU, allocated memory on a GPU) during forward + backward;
`workspace` is that less the two gradients, which every way must hold. `error` is the largest difference of a log-prob from
fp64, on 16 rows. FLOP/s count 6·T·H·V for forward + backward: what the products need without computing anything twice.
The ways take turns inside one process, so that a busy machine disturbs them alike; the fastest repeat counts.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from megatron_lwz.kernels import dispatch
from megatron_lwz.kernels.linear_logprob import linear_logprob

MIB = 2**20
Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Figure:
    """One way on one shape. Seconds, MiB, FLOP/s, nats."""

    shape: str
    way: str
    dtype: str
    forward_seconds: float
    total_seconds: float
    extra_mib: float
    workspace_mib: float
    flops_per_second: float
    error: float


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probs [T] by way of whole logits [T, V], in fp32 from there on."""
    return (hidden @ weight.t()).float().log_softmax(-1).gather(1, labels[:, None]).squeeze(1)


def ours(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probs [T] by our op, which computes entropy and log-sum-exp as well."""
    return linear_logprob(hidden, weight, labels, vocab_size=len(weight))[0]


WAYS: dict[str, Way] = {"plain": plain, "chunked": ours}


class PeakMemory:
    """`with PeakMemory(device) as peak: …` → `peak.bytes` used beyond what was in use on entry."""

    def __init__(self, device: torch.device) -> None:
        self._cuda, self.bytes = device.type == "cuda", 0

    def __enter__(self) -> PeakMemory:
        self._process, self._done = psutil.Process(), threading.Event()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._before = self._process.memory_info().rss
            self._sampler = threading.Thread(target=self._sample)
            self._sampler.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.001):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self._before
        else:
            self._done.set()
            self._sampler.join()


def once(way: Way, inputs: tuple[torch.Tensor, ...], upstream: torch.Tensor) -> tuple[float, float, int]:
    """Seconds of the forward, seconds of forward + backward, peak extra bytes."""
    hidden, weight, labels = inputs
    hidden.grad = weight.grad = None
    with PeakMemory(hidden.device) as peak:
        start = now(hidden.device)
        logprob = way(hidden, weight, labels)
        middle = now(hidden.device)
        logprob.backward(upstream)
        end = now(hidden.device)
    return middle - start, end - start, peak.bytes


def now(device: torch.device) -> float:
    """Seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(shape: str, dtype: torch.dtype, device: torch.device, repeats: int) -> list[Figure]:
    """Every way on one shape."""
    tokens, width, vocab = (int(number) for number in shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocab, width, generator=generator) * width**-0.5).to(device, dtype).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), generator=generator).to(device)
    upstream = torch.randn(tokens, generator=generator).to(device)
    sample = slice(0, min(16, tokens))
    with torch.no_grad():
        exact = plain64(hidden[sample], weight, labels[sample])
        errors = {n: (w(hidden[sample], weight, labels[sample]) - exact).abs().max().item() for n, w in WAYS.items()}
    runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        for name, way in WAYS.items():
            runs[name].append(once(way, (hidden, weight, labels), upstream))
    gradients = (hidden.numel() + weight.numel()) * hidden.element_size()
    figures = []
    for name, results in runs.items():
        forward, total, extra = (min(column) for column in zip(*results, strict=True))
        rate = 6.0 * tokens * width * vocab / total
        sizes = extra / MIB, max(0, extra - gradients) / MIB
        figures.append(Figure(shape, name, str(dtype)[6:], forward, total, *sizes, rate, errors[name]))
    return figures


def plain64(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The log-probs in fp64, a few rows of the vocabulary at a time."""
    logits = torch.cat([hidden.double() @ part.double().t() for part in weight.split(16384)], 1)
    return logits.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)


def show(figures: list[Figure]) -> None:
    """One table, each way's time and memory also as a ratio to `plain`."""
    table = Table("shape T x H x V", "way", "forward s", "fwd+bwd s", "ratio", "extra MiB", "ratio", "workspace MiB")
    table.add_column("GFLOP/s")
    table.add_column("error")
    base = {figure.shape: figure for figure in figures if figure.way == "plain"}
    for f in figures:
        b = base[f.shape]
        table.add_row(
            *(f.shape, f.way, f"{f.forward_seconds:.3f}", f"{f.total_seconds:.3f}"),
            *(f"{f.total_seconds / b.total_seconds:.2f}", f"{f.extra_mib:.0f}"),
            *(f"{f.extra_mib / max(b.extra_mib, 1e-9):.2f}", f"{f.workspace_mib:.0f}"),
            *(f"{f.flops_per_second / 1e9:.0f}", f"{f.error:.1e}"),
        )
    Console().print(table)


def main() -> None:
    """Parses, measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="512x896x32768,1024x896x32768,512x128x151936", help="TxHxV,…")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--workspace-mib", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    dispatch.set_backend("chunked", workspace_mib=options.workspace_mib)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options.dtype)
    figures = [f for shape in options.shapes.split(",") for f in measure(shape, dtype, device, options.repeats)]
    show(figures)
    if options.json:
        machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "torch": torch.__version__, "figures": [asdict(f) for f in figures]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
