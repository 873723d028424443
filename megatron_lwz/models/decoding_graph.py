"""A decode step recorded as a CUDA graph: the host launches it once instead of every kernel of every layer.

What a step computes must depend on the values of its tensors only on the device: shapes and addresses are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

RECURRENCES = 4
"""Steps of the same shape that run as they are before the next one is recorded. Recording takes the time of about two."""


class StepRecorder:
    """Computes steps; one that recurs is recorded and replayed. A step may run twice with the same outcome.

    The last graph is kept until the next one is recorded, because it keeps the memory that both use for intermediate results.
    """

    def __init__(self) -> None:
        self._shapes: Hashable = None
        self._recurrences = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recorded: Tensor | None = None
        """Where the graph leaves its result; None: the graph is one of earlier shapes."""
        self.replays = 0
        """Number of steps so far that were replayed."""

    def run(self, compute: Callable[[], Tensor], shapes: Hashable) -> Tensor:
        """Returns the result of `compute`, valid until the next step.

        Equal `shapes` mean that `compute` reads and writes the same addresses as before. Raises RuntimeError (CUDA).
        """
        if shapes != self._shapes:
            self._shapes, self._recurrences, self._recorded = shapes, 0, None
        self._recurrences += 1
        if self._recurrences <= RECURRENCES:
            return compute()
        if self._graph is None or self._recorded is None:
            self._graph, self._recorded = _record(compute, self._graph)
        self._graph.replay()
        self.replays += 1
        return self._recorded


def _record(compute: Callable[[], Tensor], earlier: torch.cuda.CUDAGraph | None) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()  # libraries set themselves up on a stream at their first use there, which cannot be recorded
    # "thread_local": other threads of the process may use the GPU meanwhile
    pool = None if earlier is None else earlier.pool()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        recorded = compute()
    return graph, recorded
