"""Times our log-prob op beside plain torch, bare matrix products and other libraries; measures memory and error.

    python tools/bench_kernels.py [--shapes 2048x896x151936,…] [--ways in\\ forward,plain] [--peers] [--json out.json] [--markdown out.md]

A shape is tokens × hidden × vocabulary; `--shapes gpu` are those of a 32B policy at TP 8, a 7B and a 0.5B policy. Every
way computes log-probs and, ours, entropy and log-sum-exp. `extra` is the peak memory beyond the inputs (resident memory
on a CPU, allocated memory on a GPU) during forward + backward; `workspace` is `extra` minus the two gradients, which
every way must hold. `of ceiling` compares 6·T·H·V FLOP, which the products need without recomputation, with the rate of
the bare products in the same run. `error` is the largest difference of a log-prob from fp64, `dX error` the gradient's
relative one, both on 16 rows. Seconds are wall time on a GPU. On a CPU they are CPU time over all threads, which other
work disturbs least. The ways take turns inside one process. The fastest repeat counts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from kernel_ways import Inputs, Way, peers, standard
from rich.console import Console
from rich.table import Table

from megatron_lwz.config.model import OLD_BACKEND_NAMES
from megatron_lwz.kernels import settings
from megatron_lwz.kernels.settings import MIB

GPU_SHAPES = "16384x5120x19008,16384x3584x152064,32768x896x151936"
CPU_SHAPES = "512x896x32768,512x128x151936"
SAMPLE = slice(0, 16)


@dataclass(frozen=True)
class Figure:
    """Results of one way on one shape, in seconds, MiB and nats. None where a way has no such figure."""

    shape: str
    way: str
    dtype: str
    forward_seconds: float | None
    forward_mib: float | None
    """Peak memory of the forward-only pass beyond the inputs."""
    total_seconds: float
    extra_mib: float
    workspace_mib: float
    of_ceiling: float
    error: float | None
    hidden_gradient_error: float | None


class PeakMemory:
    """Peak memory: `with PeakMemory(device) as peak: …` → `peak.bytes` used beyond the memory in use on entry."""

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


def make_inputs(shape: str, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Creates random inputs, the same in every run: logits with a standard deviation near 1."""
    tokens, width, vocab = (int(number) for number in shape.split("x"))
    generator = torch.Generator(device).manual_seed(0)  # 545 million numbers take a CPU longer than all that is timed
    kind: dict[str, Any] = {"generator": generator, "device": device}
    hidden = torch.randn(tokens, width, **kind).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width, **kind).mul_(width**-0.5).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), **kind)
    return Inputs(hidden, weight, labels, torch.randn(tokens, **kind))


def now(device: torch.device) -> float:
    """Returns the time in seconds: on a GPU after its work has finished, on a CPU the CPU time of this process."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def forward_backward(way: Way, inputs: Inputs) -> tuple[float, int]:
    """Returns seconds and peak extra bytes; the gradients are left on the inputs."""
    inputs.hidden.grad = inputs.weight.grad = None
    device = inputs.hidden.device
    with way.context(), PeakMemory(device) as peak:
        start = now(device)
        way.loss(inputs).backward()
        end = now(device)
    return end - start, peak.bytes


@torch.no_grad()
def forward_only(way: Way, inputs: Inputs) -> tuple[float, int] | None:
    """Returns the seconds and peak extra bytes of the log-probs alone (of the product alone for the bare products)."""
    call = way.product or way.logprob
    if call is None:
        return None
    device = inputs.hidden.device
    with way.context(), PeakMemory(device) as peak:
        start = now(device)
        call(inputs)
        end = now(device)
    return end - start, peak.bytes


@torch.no_grad()
def exact(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes fp64 log-probs [16] and gradients of hidden [16, H] of the sample, by parts of the vocabulary."""
    x, labels = inputs.hidden[SAMPLE].double(), inputs.labels[SAMPLE]
    parts = inputs.weight.split(16384)
    every = torch.cat([x @ part.double().t() for part in parts], 1).log_softmax(-1)
    slope = inputs.weights[SAMPLE, None].double()
    mean = sum(p @ part.double() for p, part in zip(every.exp().split(16384, 1), parts, strict=True))
    return every.gather(1, labels[:, None]).squeeze(1), slope * (inputs.weight[labels].double() - mean)


def errors(way: Way, inputs: Inputs, expected: tuple[torch.Tensor, torch.Tensor]) -> tuple[float | None, float | None]:
    """Returns the largest difference of a log-prob, and the relative one of dX, which the last backward pass left."""
    logprob = gradient = None
    if way.logprob is not None:
        sample = Inputs(inputs.hidden[SAMPLE], inputs.weight, inputs.labels[SAMPLE], inputs.weights[SAMPLE])
        with torch.no_grad(), way.context():
            logprob = (way.logprob(sample) - expected[0]).abs().max().item()
    if way.same_loss and inputs.hidden.grad is not None:
        found = inputs.hidden.grad[SAMPLE].double()
        gradient = ((found - expected[1]).norm() / expected[1].norm()).item()
    return logprob, gradient


def measure(shape: str, ways: Sequence[Way], inputs: Inputs, repeats: int) -> list[Figure]:
    """Measures every way on one shape.

    A way that fails here (kernel for another machine, out of memory) is reported and skipped.
    """
    expected = exact(inputs)
    times: dict[str, list[tuple[float, int]]] = {}
    forwards: dict[str, list[tuple[float, int]]] = {}
    found: dict[str, tuple[float | None, float | None]] = {}
    for repeat in range(repeats):
        for way in ways:
            if repeat and way.name not in times:
                continue
            try:
                times.setdefault(way.name, []).append(forward_backward(way, inputs))
                found.setdefault(way.name, errors(way, inputs, expected))
                forward = forward_only(way, inputs)
            except Exception as error:
                times.pop(way.name, None)
                print(f"{shape}: {way.name} left out: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
                continue
            if forward is not None:
                forwards.setdefault(way.name, []).append(forward)
    tokens, width, vocab = (int(number) for number in shape.split("x"))
    gradients = (tokens * width + vocab * width) * inputs.hidden.element_size()
    floor = min((seconds for seconds, _ in times.get("products only", [])), default=float("nan"))
    figures = []
    for name, runs in times.items():
        total, extra = min(seconds for seconds, _ in runs), min(extra for _, extra in runs)
        passes = forwards.get(name)
        seconds = min(seconds for seconds, _ in passes) if passes else None
        mib = min(size for _, size in passes) / MIB if passes else None
        sizes = extra / MIB, max(0, extra - gradients) / MIB
        dtype = str(inputs.hidden.dtype).removeprefix("torch.")
        figures.append(Figure(shape, name, dtype, seconds, mib, total, *sizes, floor / total, *found[name]))
    return figures


COLUMNS = (
    "way",
    "fwd only s",
    "fwd+bwd s",
    "ratio",
    "of ceiling",
    "extra MiB",
    "ratio",
    "workspace MiB",
    "error",
    "dX error",
)


def rows_of(figures: list[Figure]) -> list[tuple[str, ...]]:
    """Returns the cells of one shape's table; time and memory also as a ratio to `plain`."""
    plain = next((figure for figure in figures if figure.way == "plain"), None)
    return [
        (
            *(f.way, number(f.forward_seconds, ".4g"), f"{f.total_seconds:.4g}"),
            *(number(f.total_seconds / plain.total_seconds if plain else None, ".2f"), number(f.of_ceiling, ".2f")),
            *(f"{f.extra_mib:.0f}", number(f.extra_mib / max(plain.extra_mib, 1e-9) if plain else None, ".2f")),
            *(f"{f.workspace_mib:.0f}", number(f.error, ".1e"), number(f.hidden_gradient_error, ".1e")),
        )
        for f in figures
    ]


def by_shape(figures: list[Figure]) -> dict[str, list[Figure]]:
    """Returns title → the figures of one shape."""
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(f"T x H x V = {figure.shape}, {figure.dtype}", []).append(figure)
    return found


def show(figures: list[Figure]) -> None:
    """Prints one table per shape."""
    for title, of_shape in by_shape(figures).items():
        table = Table(*COLUMNS, title=title)
        for row in rows_of(of_shape):
            table.add_row(*row)
        Console(width=150).print(table)


def write_markdown(figures: list[Figure], made: dict[str, object], path: Path) -> None:
    """Writes the same tables as a page, with the machine that they were measured on."""
    lines = ["# The log-prob op, measured", "", ", ".join(f"{key}: {value}" for key, value in made.items()), ""]
    for title, of_shape in by_shape(figures).items():
        lines += [f"## {title}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows_of(of_shape)] + [""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    print(f"page: {path}")


def number(value: float | None, form: str) -> str:
    """Formats a figure, or a dash where there is none."""
    return "–" if value is None or value != value else format(value, form)


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", help="TxHxV,… or gpu; default: gpu on a GPU, else two small ones")
    parser.add_argument("--ways", default="", help="only ways whose name contains one of these, comma-separated")
    parser.add_argument("--peers", action="store_true", help="other libraries too, where they are installed")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--workspace-mib", type=int, help="default: 1024 on a GPU, else 256")
    parser.add_argument("--cache-mib", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    return parser.parse_args()


def main() -> None:
    """Parses the command line, measures, prints the tables and writes the files."""
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    workspace = options.workspace_mib or (1024 if gpu else 256)
    settings.put(settings.Settings("torch", workspace * MIB, options.cache_mib * MIB))
    dtype = getattr(torch, options.dtype or ("bfloat16" if gpu else "float32"))
    ways = [*standard(), *(peers() if options.peers else ())]
    if options.ways:
        parts = options.ways.split(",")
        parts += [f"ours, {OLD_BACKEND_NAMES[part]}" for part in parts if part in OLD_BACKEND_NAMES]
        ways = [way for way in ways if any(part in way.name for part in parts)]
    shapes = options.shapes or ("gpu" if gpu else CPU_SHAPES)
    figures = []
    for shape in (GPU_SHAPES if shapes == "gpu" else shapes).split(","):
        figures += measure(shape, ways, make_inputs(shape, dtype, device), options.repeats)
    show(figures)
    made = {
        "date": datetime.date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "workspace_mib": workspace,
        "cache_mib": options.cache_mib,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**made, "figures": [asdict(f) for f in figures]}, indent=1) + "\n")
        print(f"figures: {options.json}")
    if options.markdown:
        write_markdown(figures, made, options.markdown)


if __name__ == "__main__":
    main()
