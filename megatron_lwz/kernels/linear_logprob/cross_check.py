"""Occasional recomputation of a few rows by the reference, next to whichever implementation runs.

with cross_check.watch(step) as found:
    …                          # calls of the op observe the first rows of their chunks
found.largest()                # the largest |difference| of a log-prob, entropy or lse, in nats
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from megatron_lwz.kernels.linear_logprob import reference
from megatron_lwz.kernels.linear_logprob.problem import Problem
from megatron_lwz.kernels.settings import settings

ROWS = 32
"""Rows of each chunk that are compared. Their logits take 32 · V / TP · 4 bytes."""


class Findings:
    """The differences seen by one rank."""

    def __init__(self) -> None:
        self._largest: list[Tensor] = []

    def add(self, difference: Tensor) -> None:
        """Adds one comparison; the value stays on the device."""
        self._largest.append(difference.abs().amax())

    def largest(self) -> float:
        """Returns the largest difference, in nats; 0 if nothing was compared (ranks without the output layer)."""
        return max((float(value) for value in self._largest), default=0.0)


_open: list[Findings] = []


@contextmanager
def watch(step: int) -> Iterator[Findings | None]:
    """Compares within this block if `kernels.cross_check_interval` selects this step; yields None otherwise.

    The choice must be the same on all ranks, because the reference has collectives.
    """
    interval = settings().cross_check_interval
    if not interval or step % interval:
        yield None
        return
    _open.append(Findings())
    try:
        yield _open[-1]
    finally:
        _open.pop()


@torch.no_grad()
def observe(x: Tensor, weight: Tensor, rows: Tensor, outputs: Tensor, problem: Problem) -> None:
    """Compares the first rows of a chunk x [n, H]; `outputs` [≥ 3, T + 1] begins with logprob, entropy, lse."""
    if not _open:
        return
    sample = slice(0, ROWS)
    expected = torch.stack(reference.of_rows(x[sample], weight, problem.labels[rows[sample]], problem))
    used = rows[sample] < problem.tokens  # a padding row's numbers mean nothing
    _open[-1].add((outputs[:3, rows[sample]] - expected) * used)
