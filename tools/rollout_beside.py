"""A training loop for the main thread, as a trainer has one, to see what the controller's thread costs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import mean, stdev

import torch
from torch import nn

TURN_SECONDS = 3.0
SETTLE_SECONDS = 1.0
"""What was on its way is read and written by then."""
SIZES = {"small kernels": (64, 64), "large kernels": (256, 512)}
"""Name → (hidden size, rows). With small kernels the interpreter bounds a step, as where a GPU waits for launches."""


class TrainingLoop:
    """Forward, backward and Adam over four transformer layers, on one thread."""

    def __init__(self, hidden: int, rows: int) -> None:
        torch.set_num_threads(1)
        layer = nn.TransformerEncoderLayer(hidden, 4, 4 * hidden, batch_first=True, dropout=0.0)
        self._model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self._optimizer = torch.optim.Adam(self._model.parameters(), foreach=False)
        self._rows = torch.randn(1, rows, hidden)

    def step(self) -> None:
        """One update."""
        self._optimizer.zero_grad()
        self._model(self._rows).square().mean().backward()
        self._optimizer.step()

    def seconds_per_step(self, seconds: float) -> float:
        """Mean over the steps of so many seconds."""
        began, steps = time.perf_counter(), 0
        while (taken := time.perf_counter() - began) < seconds or not steps:
            self.step()
            steps += 1
        return taken / steps


class Beside:
    """Time per step beside a load against that without it, for each of SIZES.

    The load is held and let go in turns of a few seconds, because a machine's own speed changes over minutes.
    """

    def __init__(self) -> None:
        self._loops = {name: TrainingLoop(*size) for name, size in SIZES.items()}
        self._ratios: dict[str, list[float]] = {name: [] for name in SIZES}
        self.seconds_held = 0.0
        """How long the load did not run."""

    def measure(self, seconds: float, hold: Callable[[bool], None]) -> None:
        """While a load runs that `hold(True)` holds. The load runs for at least `seconds` in all."""
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
        """Name → (mean, its standard error): 0.1 where a step takes 10 % longer beside the load."""
        return {name: (mean(found) - 1, stdev(found) / len(found) ** 0.5) for name, found in self._ratios.items()}
