"""Times the ways of a log-prob on one shape; measures their memory and their error."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from megatron_lwz.kernels.bench.ways import Inputs, Way
from megatron_lwz.units import MIB

SAMPLE = slice(0, 16)
"""Rows whose error is looked at."""

log = logging.getLogger(__name__)


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
                first = (str(error).splitlines() or [""])[0][:120]
                log.warning("%s: %s left out: %s: %s", shape, way.name, type(error).__name__, first)
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
