"""Answers torch.cuda's questions as a machine with one idle Hopper GPU would, and counts the calls that wait for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.cuda.random

from megatron_lwz.rehearsal.ledger import Ledger
from megatron_lwz.units import GIB

DEVICE = torch.device("cuda", 0)
_PROCESSORS = 132
_MEMORY = 80 * GIB


class Properties:
    """What `torch.cuda.get_device_properties` says of an H100 with 80 GiB."""

    major, minor = 9, 0
    multi_processor_count = _PROCESSORS
    total_memory = _MEMORY
    name = "rehearsal (as sm_90)"
    warp_size = 32


class Event:
    """A CUDA event that has happened."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def record(self, *_: object) -> None:
        """Does nothing."""

    def wait(self, *_: object) -> None:
        """Makes a stream wait, not the host."""

    def query(self) -> bool:
        """Whether it has happened."""
        return True

    def synchronize(self) -> None:
        """Blocks the host."""
        _wait("event.synchronize")

    def elapsed_time(self, _: object) -> float:
        """Milliseconds between two events."""
        return 1.0


class Stream:
    """A CUDA stream on which nothing is ever pending."""

    def __init__(self, *_: object, **__: object) -> None:
        self.device = DEVICE
        self.cuda_stream = 0

    def wait_stream(self, *_: object) -> None:
        """Makes this stream wait, not the host."""

    def wait_event(self, *_: object) -> None:
        """Makes this stream wait, not the host."""

    def record_event(self, *_: object) -> Event:
        """Returns an event of this stream."""
        return Event()

    def query(self) -> bool:
        """Whether it is idle."""
        return True

    def synchronize(self) -> None:
        """Blocks the host."""
        _wait("stream.synchronize")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...


class Graph:
    """A CUDA graph. Replaying it computes nothing, as nothing else does."""

    def pool(self) -> tuple[int, int]:
        """Names its memory."""
        return 0, 0

    def replay(self) -> None:
        """Counts one launch."""
        if _ledger is not None:
            _ledger.launches["cuda graph"] += 1


@contextlib.contextmanager
def _capture(*_: object, **__: object) -> Iterator[None]:
    """`torch.cuda.graph(…)`: nothing inside may wait for the GPU."""
    if _ledger is not None:
        _ledger.recording = True
    try:
        yield
    finally:
        if _ledger is not None:
            _ledger.recording = False


_STREAM = Stream()
_ledger: Ledger | None = None

ANSWERS: dict[str, Callable[..., Any]] = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "is_bf16_supported": lambda *_, **__: True,
    "init": lambda: None,
    "_lazy_init": lambda: None,
    "current_device": lambda: 0,
    "device_count": lambda: 1,
    "set_device": lambda *_: None,
    "device": lambda *_: contextlib.nullcontext(),
    "stream": lambda *_: contextlib.nullcontext(),
    "synchronize": lambda *_: _wait("cuda.synchronize"),
    "empty_cache": lambda: None,
    "current_stream": lambda *_: _STREAM,
    "default_stream": lambda *_: _STREAM,
    "get_device_properties": lambda *_: Properties,
    "get_device_capability": lambda *_: (Properties.major, Properties.minor),
    "get_device_name": lambda *_: Properties.name,
    "mem_get_info": lambda *_: (_MEMORY, _MEMORY),
    "memory_allocated": lambda *_: 0 if _ledger is None else _ledger.bytes,
    "max_memory_allocated": lambda *_: 0 if _ledger is None else _ledger.peak,
    "reset_peak_memory_stats": lambda *_: None,
    "is_current_stream_capturing": lambda: False,
    "get_rng_state": lambda *_, **__: torch.get_rng_state(),
    "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
    "manual_seed": lambda _: None,
    "manual_seed_all": lambda _: None,
}
"""Function of `torch.cuda` → its answer."""


def install() -> None:
    """Replaces `torch.cuda`'s functions for the rest of the process. Before anything asks whether there is a GPU."""
    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, answer)
        if hasattr(torch.cuda.random, name):
            setattr(torch.cuda.random, name, answer)
    for name, kind in (("Stream", Stream), ("Event", Event), ("CUDAGraph", Graph), ("graph", _capture)):
        setattr(torch.cuda, name, kind)
    torch.cuda.default_generators = (torch.default_generator,)
    torch.cuda.nvtx.range = contextlib.nullcontext  # type: ignore[assignment]
    binding: Any = torch._C
    binding._cuda_getDevice = lambda: 0
    binding._cuda_setDevice = lambda *_: None
    binding._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda"): made on the host, then copied


def count_into(ledger: Ledger) -> None:
    """Makes the ledger the one that counts waits of streams, events and the device."""
    global _ledger
    _ledger = ledger


def _wait(what: str) -> None:
    if _ledger is not None:
        _ledger.wait(what)
