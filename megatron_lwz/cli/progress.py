"""What a person sees of a run while it goes on: a live screen on a terminal, lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.text import Text

from megatron_lwz.cli.common import console, progress_bar
from megatron_lwz.config.training import ProgressForm

SECONDS = 30.0
"""Without a live screen something is said at least this often, also while a step waits for rollouts."""


class RunProgress:
    """Shows the steps of a run, and what the present step does. Silent on ranks above 0.

    `form`: `live` is a screen that is drawn again and again; `lines` one line per step, and one every `seconds` in between;
    `json` the same as JSON objects; `auto` is `live` on a terminal, else `lines`.
    """

    def __init__(self, title: str, total: int, form: ProgressForm = "auto", *, seconds: float = SECONDS) -> None:
        self._console = console()
        self._form = ("live" if self._console.is_terminal else "lines") if form == "auto" else form
        self._title, self._total, self._seconds = title, total, seconds
        self._bar = progress_bar(self._console)
        self._task = self._bar.add_task(title, total=total, note="")
        self._done: int | None = None
        self._shown: Mapping[str, float] = {}
        self._phase, self._note, self._since = "", "", time.monotonic()
        self._spoke, self._over = threading.Event(), threading.Event()
        self._stack = ExitStack()

    def __call__(self, step: int, shown: Mapping[str, float]) -> None:
        """Shows that `step` is done, with a few of its metrics."""
        if self._done is None and step > 1:  # the run resumed: the steps before took no time of this process
            self._bar.reset(self._task, completed=step - 1)
        self._done, self._shown = step, dict(shown)
        self._phase, self._note, self._since = "", "", time.monotonic()
        self._bar.update(self._task, completed=step)
        if self._form != "live":
            self._say("step", _values(shown), shown)

    def phase(self, name: str) -> None:
        """Shows what the present step does from now on, such as `update`."""
        if name != self._phase:
            self._phase, self._note, self._since = name, "", time.monotonic()

    def note(self, text: str) -> None:
        """Shows how far the present phase is."""
        self._note = text

    def _say(self, event: str, text: str, values: Mapping[str, float | str]) -> None:
        self._spoke.set()
        done = self._done or 0
        if self._form == "lines":
            self._console.print(f"{self._title} {done}/{self._total}  {text}", markup=False)
            return
        row = {"event": event, "stage": self._title, "step": done, "steps": self._total, **values}
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        self._console.print(json.dumps(finite, ensure_ascii=False), markup=False)

    def _meanwhile(self) -> None:
        """Says what moves when nothing else was said for a while. Runs in a thread of its own."""
        while not self._over.wait(self._seconds):
            if not self._spoke.is_set():
                passed = round(time.monotonic() - self._since, 1)
                self._say(
                    "waiting", self._present(), {"phase": self._phase, "phase_seconds": passed, "note": self._note}
                )
            self._spoke.clear()

    def _present(self) -> str:
        passed = f"{time.monotonic() - self._since:.0f} s"
        phase = self._phase or ("begins" if self._done is None else "")
        return "  ".join(part for part in (phase, passed, self._note) if part)

    def _screen(self) -> Group:
        done = self._done or 0
        lines = [f"  step {done}  {_values(self._shown)}"] if self._shown else []
        if done < self._total:
            lines.append(f"  step {done + 1}  {self._present()}" if self._done is not None else f"  {self._present()}")
        return Group(self._bar, *map(Text, lines))

    def __enter__(self) -> RunProgress:
        if self._form == "live":
            live = Live(console=self._console, get_renderable=self._screen, refresh_per_second=2)
            self._stack.enter_context(live)
            self._stack.enter_context(_log_follows())
        else:
            teller = threading.Thread(target=self._meanwhile, name="progress", daemon=True)
            self._stack.callback(teller.join)
            self._stack.callback(self._over.set)
            teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)


def _values(shown: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in shown.items())


@contextmanager
def _log_follows() -> Iterator[None]:
    """Lets our log write to the streams that a live screen has put in place of stdout and stderr: above itself."""
    own = {sys.__stdout__: sys.stdout, sys.__stderr__: sys.stderr}
    found = [h for h in logging.getLogger("megatron_lwz").handlers if isinstance(h, logging.StreamHandler)]
    before = [(handler, handler.setStream(own[handler.stream])) for handler in found if handler.stream in own]
    try:
        yield
    finally:
        for handler, stream in before:
            handler.setStream(stream or handler.stream)
