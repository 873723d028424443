"""A training loop for the main thread, as a trainer has one, to see what the controller's thread costs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

SECONDS_ALONE = 8.0
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

    def seconds(self, over: Callable[[], bool]) -> float:
        """Median seconds of a step, over the steps until `over`."""
        found = []
        while not over() or not found:
            began = time.perf_counter()
            self.step()
            found.append(time.perf_counter() - began)
        return median(found)


class Beside:
    """Step times alone and beside something else, for each of SIZES."""

    def __init__(self) -> None:
        self._loops = {name: TrainingLoop(*size) for name, size in SIZES.items()}
        self._alone: dict[str, list[float]] = {name: [] for name in SIZES}
        self._beside: dict[str, float] = {}

    def measure_alone(self) -> None:
        """Before the load and after it: a machine that is not the same any more shows."""
        for name, loop in self._loops.items():
            self._alone[name].append(loop.seconds(_after(SECONDS_ALONE)))

    def measure_beside(self, seconds: float) -> None:
        """While the load runs; `seconds` in all."""
        for name, loop in self._loops.items():
            self._beside[name] = loop.seconds(_after(seconds / len(self._loops)))

    def slowdown(self) -> dict[str, float]:
        """Name → 0.1 where a step takes 10 % longer beside the load."""
        return {name: self._beside[name] / (sum(alone) / len(alone)) - 1 for name, alone in self._alone.items()}

    def drift(self) -> float:
        """Largest change of a step's time alone, from before the load to after it: what the slowdown may be wrong by."""
        return max(abs(alone[-1] / alone[0] - 1) for alone in self._alone.values())


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end
