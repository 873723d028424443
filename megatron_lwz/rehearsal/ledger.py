"""What a rehearsal counts: device memory by phase, waits of the host for the GPU by place, launches by kernel."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import NamedTuple

from megatron_lwz.errors import LwzError

BLOCK = 512
"""Bytes: torch's allocator gives device memory in multiples of this."""
_OURS, _UPSTREAM = "megatron_lwz", ("megatron", "transformer_engine")
_SKIPPED = "rehearsal"


class RehearsalError(LwzError):
    """A GPU would refuse this, or compute nonsense."""


class Wait(NamedTuple):
    """One kind of wait: what the host asked for, in which phase, and which line of the product asked."""

    phase: str
    what: str
    file: str
    """From the package on, e.g. `megatron_lwz/training/step.py`."""
    function: str
    line: int

    @property
    def place(self) -> str:
        """File and function: the part that does not change when a line is inserted above."""
        return f"{self.file}:{self.function}"


class Ledger:
    """The counts of one rank, in phases (parameters, gradients, optimizer, forward …)."""

    def __init__(self) -> None:
        self.phase = "start"
        self.waits: Counter[Wait] = Counter()
        self.launches: Counter[str] = Counter()
        self.recording = False
        """Whether a CUDA graph is being recorded: nothing may wait then."""
        self.transfers: Counter[tuple[str, str, str, int]] = Counter()
        """(phase, operation, group, ranks of the group) → number of collectives."""
        self.transferred: Counter[tuple[str, str, str, int]] = Counter()
        """The same → their bytes."""
        self.peaks: dict[str, int] = {}
        """Phase → highest number of bytes allocated on the device during it."""
        self.bytes = 0
        """Device memory allocated now."""
        self.host_bytes = 0
        """Host memory of fake tensors now: pinned copies of weights and the like."""
        self.host_peaks: dict[str, int] = {}
        """Phase → highest number of bytes of fake tensors in host memory during it."""

    @property
    def peak(self) -> int:
        """Highest number of bytes allocated on the device."""
        return max(self.peaks.values(), default=0)

    @property
    def host_peak(self) -> int:
        """Highest number of bytes of fake tensors in host memory."""
        return max(self.host_peaks.values(), default=0)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Counts what happens inside the block under this phase."""
        before, self.phase = self.phase, phase
        self._see_peak()
        try:
            yield
        finally:
            self.phase = before
            self._see_peak()

    def allocated(self, size: int, *, on_device: bool) -> None:
        """Counts memory that is taken, or with a negative size returned. On the device, `size` is in whole BLOCKs."""
        if on_device:
            self.bytes += size
        else:
            self.host_bytes += size
        self._see_peak()

    def wait(self, what: str) -> None:
        """Counts that the host waits here for the device to finish what it was given."""
        wait = Wait(self.phase, what, *_asking())
        if self.recording:
            raise RehearsalError(f"a wait for the GPU cannot be recorded in a CUDA graph: {what} at {wait.place}")
        self.waits[wait] += 1

    def transfer(self, operation: str, group: str, ranks: int, size: int) -> None:
        """Counts a collective over a group that carries `size` bytes."""
        key = (self.phase, operation, group, ranks)
        self.transfers[key] += 1
        self.transferred[key] += size

    def waits_in(self, *phases: str) -> int:
        """Returns the number of waits in these phases; in all without arguments."""
        return sum(count for wait, count in self.waits.items() if not phases or wait.phase in phases)

    def _see_peak(self) -> None:
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.bytes)
        self.host_peaks[self.phase] = max(self.host_peaks.get(self.phase, 0), self.host_bytes)


def _asking() -> tuple[str, str, int]:
    """Returns file, function and line of the innermost frame that is the product's or Megatron's, not this package's."""
    for frame, line in traceback.walk_stack(None):
        parts = PurePath(frame.f_code.co_filename).parts
        for root in (_OURS, *_UPSTREAM):
            if root in parts:
                inner = parts[len(parts) - 1 - parts[::-1].index(root) :]
                if _SKIPPED not in inner and not frame.f_code.co_name.startswith("<"):  # comprehensions: not everywhere
                    return "/".join(inner), frame.f_code.co_name, line
    return "autograd", "backward", 0  # the engine's own thread has no frames of Python
