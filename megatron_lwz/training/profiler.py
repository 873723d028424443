"""`--profile`: records chosen steps of a run, on every rank, and writes one trace. It changes no number.

Where a step is not chosen, it costs two looks at a clock per phase, request and score.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch.distributed as dist
from torch.autograd import profiler as autograd_profiler

from megatron_lwz.distributed import environment, exchange, platform
from megatron_lwz.errors import LwzError, Resumable, refused_path
from megatron_lwz.profiling.files import Head, combine, write_part
from megatron_lwz.profiling.operators import MARK, clock_offset, read_torch_trace, shifted, since, totals
from megatron_lwz.profiling.spans import STEPS, Recorder, Span, Window
from megatron_lwz.profiling.trace import trainer_events
from megatron_lwz.run_paths import RunPaths

log = logging.getLogger(__name__)

Services = Callable[[bool], Sequence[Span]]
"""Turns the recording of engines and rewards on or off; returns what was recorded."""

_ONE_MACHINE = 10**6
"""Nanoseconds. Ranks whose clocks differ by less run on one machine: on two, the clocks began with their machines."""


class Profiler:
    """Records the steps of a window. Without one it does nothing. A context, whose end says what was written.

    All ranks make the same calls. `spans` collects what this process does.
    """

    def __init__(self, window: Window | None = None) -> None:
        self.spans = Recorder()
        self._window = window
        self._run: RunPaths | None = None
        self._services: Services = lambda _: ()
        self._recording: _Recording | None = None
        self._recorded: list[int] = []
        self._written: Path | None = None

    def check(self, steps: int) -> None:
        """Raises LwzError if the window lies beyond the `steps` of the run."""
        if self._window is not None and self._window.last > steps:
            expected = (
                f"expected steps=FIRST-LAST with LAST at most {steps} (training.steps, or the epochs that set it)"
            )
            raise LwzError(f"--profile steps={self._window}: the run has {steps} steps: {expected}")

    @contextmanager
    def recording(self, run: RunPaths, services: Services = lambda _: ()) -> Iterator[None]:
        """The steps of the run are taken inside the block. `services` is asked on rank 0. Collective.

        When the run ends within the window, the steps that are whole are written at the end of the block.
        """
        self._run, self._services = run, services
        yield
        self._end()

    def steps(self, numbers: Iterable[int]) -> Iterator[int]:
        """Yields the numbers of steps, and records those of the window."""
        if self._window is None:
            yield from numbers
            return
        assert self._run is not None
        for step in numbers:
            if self._recording is None and step in self._window:
                self._recording = _Recording(self._window, self._run, self.spans, self._services)
            with self.spans.span(STEPS, f"step {step}", step=step):
                yield step
            if self._recording is not None:
                self._recording.steps.append(step)
            if step == self._window.last:
                self._end()

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if self._recording is not None:  # an error has ended a recorded step
            self._recording.stop()
        if self._window is None or environment.rank():
            return
        if self._written is not None:
            log.info("profile: %s: open in ui.perfetto.dev", self._written)
        missing = [step for step in range(self._window.first, self._window.last + 1) if step not in self._recorded]
        if missing and (kind is None or issubclass(kind, Resumable)):
            log.info("profile: steps that this start did not run are not in it: %s", ", ".join(map(str, missing)))

    def _end(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None and recording.steps:
            self._recorded += recording.steps
            self._written = recording.write()
        elif recording is not None:
            recording.stop()


class _Recording:
    """A recording under way, of all ranks. `steps` are those that it holds whole."""

    def __init__(self, window: Window, run: RunPaths, spans: Recorder, services: Services) -> None:
        """Begins it. Collective."""
        self.steps: list[int] = []
        self._run, self._spans, self._services = run, spans, services
        self._rank, self._window = dist.get_rank(), window
        self._torch = _start_torch() if self._rank in window.ranks else None
        self._marked = time.monotonic_ns()
        if self._torch is not None:
            with autograd_profiler.record_function(MARK):
                pass
        exchange.largest(0.0)  # the start of torch's profiler may take a second, which no rank shall wait within a step
        now, wall = time.monotonic_ns(), time.time_ns()
        self._zero, first_wall = exchange.broadcast_json([now, wall - now])
        shift = wall - now - first_wall
        self._shift = shift if abs(shift) > _ONE_MACHINE else 0
        spans.record(True)
        services(True)

    def stop(self) -> None:
        """Ends it. Nothing is written."""
        self._spans.record(False)
        if self._torch is not None:
            self._torch.__exit__(None, None, None)

    def write(self) -> Path | None:
        """Ends it and writes it. A failure is a warning, and training goes on. Collective."""
        spans, services = self._spans.record(False), self._services(False)
        if self._torch is not None:
            self._torch.__exit__(None, None, None)
        failed = exchange.first_said(_failure(lambda: self._write_part(spans)))
        if failed is None:
            failed = exchange.first_said(_failure(lambda: self._combine(services)))
        for file in (self._run.profile_part(self._rank), self._run.profile_raw(self._rank)):
            with suppress(OSError):
                file.unlink()
        if failed is None:
            return self._run.profile_trace(self._name)
        if self._rank == 0:
            log.warning("the profile is not written: %s", failed)
        return None

    @property
    def _name(self) -> str:
        return f"{self.steps[0]}-{self.steps[-1]}"

    def _write_part(self, spans: Sequence[Span]) -> None:
        if self._rank and self._torch is None:
            return
        run, rank = self._run, self._rank
        run.profile.mkdir(parents=True, exist_ok=True)
        mine = [self._moved(span) for span in self._of_whole_steps(spans)]
        events, operators = list(trainer_events(rank, mine, zero=self._zero)), None
        if self._torch is not None:
            raw = run.profile_raw(rank)
            self._torch.export_chrome_trace(str(raw))
            found = read_torch_trace(raw)
            offset = clock_offset(found, self._marked, raw) + self._shift
            found = since(found, offset=offset, zero=self._zero)
            events += shifted(found, rank, offset=offset, zero=self._zero)
            operators = totals(found, offset=offset)
        write_part(run.profile_part(rank), Head(rank, mine, operators), events)

    def _combine(self, services: Sequence[Span]) -> None:
        if self._rank == 0:
            ranks = sorted({0, *self._window.ranks})
            combine(self._run, ranks, [self._moved(span) for span in services], zero=self._zero, steps=self._name)

    def _of_whole_steps(self, spans: Sequence[Span]) -> list[Span]:
        end = max(span.end for span in spans if span.track == STEPS and span.facts["step"] in self.steps)
        return [span for span in spans if span.end <= end]

    def _moved(self, span: Span) -> Span:
        """Returns a span on the clock of rank 0's machine; what began before the recording begins with it."""
        begin = max(span.begin + self._shift, self._zero)
        return replace(span, begin=begin, end=max(begin, span.end + self._shift))


def _start_torch() -> autograd_profiler.profile:
    """Begins to record operators. `torch.profiler` does it by the same class, and imports torch's compiler first."""
    profile = autograd_profiler.profile(use_device="cuda" if platform.has_gpu() else None, use_kineto=True)
    profile.__enter__()
    return profile


def _failure(work: Callable[[], None]) -> str | None:
    """Does the work. Returns in one line why it failed."""
    try:
        work()
    except LwzError as error:
        return str(error)
    except OSError as error:
        return str(refused_path(error) or error)
    return None
