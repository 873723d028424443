"""Progress of an evaluation: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from megatron_lwz.cli.common import console, progress_bar

LINE_SECONDS = 10.0


class Bar:
    """Shows the number of finished items and a note when called.

    Without a terminal it prints at most every few seconds.
    """

    def __init__(self, title: str) -> None:
        self._console = console()
        self._title = title
        self._said = time.monotonic()
        self._bar = progress_bar(self._console)
        self._task = self._bar.add_task(title, total=None, note="")

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Shows `done` of `total`."""
        self._bar.update(self._task, completed=done, total=total, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said >= LINE_SECONDS:
            self._said = now
            self._console.print(f"{self._title} {done}/{total}  {note}", markup=False)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._bar.stop()
