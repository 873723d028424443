"""What every command shares: reading CONFIG, one-line errors, signals, and the console of rank 0."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_lwz.config import Config, load_config
from megatron_lwz.distributed import environment, termination
from megatron_lwz.errors import DataError, LwzError

USER_ERROR = 2
GOES_ON = "the same command goes on from the last checkpoint"
"""What a training stage says when a signal ends it."""

_GRACE_SECONDS = 5.0
"""How long a rank above 0 holds its error back: when rank 0 fails too, torchrun ends this rank before it speaks."""


class UsageError(LwzError):
    """The command line itself cannot be read."""


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None, *, advice: str = "") -> int:
    """Runs `main(argv)` and returns the exit status: 0, 2 after an LwzError, 130 after ^C, 143 after SIGTERM.

    An LwzError is one line on stderr, said once for all ranks. `--traceback` anywhere in `argv` shows the whole stack.
    A signal lets `finally` blocks run, for 30 s at most; then one line says so, with `advice` on how to go on.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "--traceback" in arguments
    start_log()
    with (
        imports_frozen() if argv is None else nullcontext(),
        termination.watched(forced=lambda: _say_stopped(advice), until_exit=argv is None),
    ):
        try:
            main([text for text in arguments if text != "--traceback"])
            return 0
        except BaseException as error:
            number = termination.requested() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0)
            # After a signal an error may be its consequence, for peers and engines end too; a disk that refuses is not.
            if isinstance(error, LwzError if not number else DataError):
                _report(error, verbose=verbose)
                return USER_ERROR
            if not number:
                raise
            if verbose:
                traceback.print_exception(error)
        _say_stopped(advice)
        return 128 + number


@contextmanager
def imports_frozen() -> Iterator[None]:
    """Garbage collections leave out what was imported before: it stays, and Megatron collects at every checkpoint."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def load(argv: Sequence[str]) -> Config:
    """The Config of a command line `CONFIG [section.key=value …]`. Raises LwzError."""
    return parse(parser(), argv)[0]


def parser(description: str = "") -> argparse.ArgumentParser:
    """A parser that knows `CONFIG [section.key=value …]`; a command adds its own options to it."""
    built = Parser(description=description)
    built.add_argument("config", metavar="CONFIG", help="a YAML file, or a folder that holds config.yaml")
    built.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings that win over the file's")
    return built


def parse(with_options: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """Reads `argv` with a parser made by `parser`, options and overrides in any order. Raises LwzError."""
    arguments = with_options.parse_intermixed_args(list(argv))
    return load_config(arguments.config, arguments.overrides), arguments


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line like all others, and that speaks on rank 0 only."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError instead of leaving the process."""
        usage = " ".join(self.format_usage().split())
        raise UsageError(f"{message} ({usage})")

    def _print_message(self, message: str, file: Any = None) -> None:
        if environment.rank() == 0:
            super()._print_message(message, file)


def positive(text: str) -> int:
    """An option that counts from 1."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """An option that counts from 0."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
    return value


def serving_parser(command: str, description: str, model: str) -> Parser:
    """The options that every server of ours has. `model`: its name for clients unless `--served-model-name` says another."""
    parser = Parser(prog=f"lwz {command}", description=description)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder with tokenizer.json")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default loopback only")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=not_negative, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--served-model-name", default=model)
    return parser


def console(*, stderr: bool = False) -> Console:
    """A console that writes on rank 0 and is quiet on all others."""
    return Console(stderr=stderr, quiet=environment.rank() != 0, soft_wrap=True, highlight=False)


def progress_bar(on: Console) -> Progress:
    """A bar with counts, a field `note` and times; it shows on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, console=on, disable=not on.is_terminal)


class StepProgress:
    """Shows how far a run is: a bar on a terminal, a plain line per step elsewhere, nothing on ranks above 0."""

    def __init__(self, title: str, total: int, *, completed: int = 0) -> None:
        self._console = console()
        self._title, self._total = title, total
        self._bar = progress_bar(self._console)
        self._task = self._bar.add_task(title, total=total, completed=completed, note="")

    def __call__(self, step: int, shown: Mapping[str, float]) -> None:
        """Says that `step` is done, with a few of its metrics."""
        note = "  ".join(f"{name} {value:.3g}" for name, value in shown.items())
        self._bar.update(self._task, completed=step, note=note)
        if not self._console.is_terminal:
            self._console.print(f"{self._title} {step}/{self._total}  {note}", markup=False)

    def note(self, text: str) -> None:
        """Shows what the step is waiting for; on a terminal only."""
        self._bar.update(self._task, note=text)

    def __enter__(self) -> StepProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._bar.stop()


def start_log() -> None:
    """Our own log: what was chosen goes to stdout, on rank 0 only; warnings of every rank go to stderr."""
    log = logging.getLogger("megatron_lwz")
    log.setLevel(logging.INFO if environment.rank() == 0 else logging.WARNING)
    for handler in list(log.handlers):  # `run` may be called again with other streams
        log.removeHandler(handler)
    chosen, warnings = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    chosen.addFilter(lambda record: record.levelno < logging.WARNING)
    warnings.setLevel(logging.WARNING)
    for handler in (chosen, warnings):
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        log.addHandler(handler)


def _say_stopped(advice: str) -> None:
    if environment.rank() == 0:
        name = signal.Signals(termination.requested() or signal.SIGINT).name
        os.write(2, f"stopped by {name}{': ' + advice if advice else ''}\n".encode())


def _report(error: LwzError, *, verbose: bool) -> None:
    rank = environment.rank()
    if rank:
        try:
            time.sleep(_GRACE_SECONDS)
        except (termination.Terminated, KeyboardInterrupt):
            return
    text = "".join(traceback.format_exception(error)).rstrip() if verbose else " ".join(str(error).split("\n"))
    where = f" (rank {rank})" if rank else ""
    sys.stderr.write(f"error{where}: {text}\n")
