"""Code shared by all commands: reading CONFIG, one-line errors, signals, and the console of rank 0."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_lwz.cli import lifetime, option_types
from megatron_lwz.config import Config, load_config
from megatron_lwz.config.base import user_path
from megatron_lwz.distributed import environment, termination
from megatron_lwz.errors import DataError, LwzError, Resumable, out_of_memory, printable, refused_path
from megatron_lwz.writing import write_text

USER_ERROR = 2
PEER_LOST = 1
"""Exit status of a rank that a collective failed on, because another rank ended, hung or could not be reached."""
UNFINISHED = 75
"""Exit status of a run that has saved and ended in time: EX_TEMPFAIL of sysexits.h, start it again."""
UNFINISHED_NOTE = "LWZ_UNFINISHED_NOTE"
"""Variable with the path of the file in which rank 0 says so, if a launch script asks for it."""
GOES_ON = "the same command goes on from the last checkpoint"
"""Advice that a training stage prints when a signal ends it."""

_OVERRIDE = re.compile(r"\w+(\.\w+)+=")
_GRACE_SECONDS = 5.0
"""How long a rank above 0 delays its error. When rank 0 fails too, torchrun ends this rank before it prints."""


class UsageError(LwzError):
    """Raised when the command line itself cannot be read."""


class PathError(UsageError, argparse.ArgumentTypeError):
    """Raised for an argument that cannot be a path. argparse adds the argument's name."""


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None, *, advice: str = "") -> int:
    """Runs `main(argv)` and returns the exit status: 0, 2 after an LwzError, 130 after ^C, 143 after SIGTERM.

    75 after Resumable, which is printed but is no error; 0 where torchrun would start the run again.

    An LwzError is printed as one line on stderr, once for all ranks. So are a path that the system refuses and a lack of
    memory.
    `--traceback` anywhere in `argv` shows the whole stack. After a signal `finally` blocks run, for at most 30 s. Then
    one line reports the signal, with `advice` on how to resume. Without `argv` the process must end with this status.
    """
    status = _run(main, argv, advice)
    if argv is None:
        lifetime.ends_with(status)
    return status


def _run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None, advice: str) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "--traceback" in arguments
    start_log()
    with (
        lifetime.running() if argv is None else nullcontext(),
        termination.watched(forced=lambda: _say_stopped(advice), until_exit=argv is None),
    ):
        try:
            main([text for text in arguments if text != "--traceback"])
            return 0
        except BaseException as error:
            number = termination.requested() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0)
            if isinstance(error, Resumable):
                _say(str(error))
                _leave_note(str(error))
                return 0 if environment.restarts_left() else UNFINISHED  # torchrun must not start it again
            # After a signal, most errors only follow from it: peers and engines end too. A disk error does not.
            if isinstance(error, LwzError if not number else DataError):
                _report(error, verbose=verbose)
                return USER_ERROR
            if not number:
                if (plain := refused_path(error) or out_of_memory(error)) is not None:
                    _report(plain.with_traceback(error.__traceback__), verbose=verbose)
                    return USER_ERROR
                if (lost := _lost_peer(error)) is not None and not verbose:
                    _report(lost, verbose=False)
                    return PEER_LOST
                raise
            if verbose:
                traceback.print_exception(error)
        _say_stopped(advice)
        return 128 + number


def load(argv: Sequence[str]) -> Config:
    """Returns the Config of a command line `CONFIG [section.key=value …]`. Raises LwzError."""
    return parse(parser(), argv)[0]


def parser(description: str = "") -> argparse.ArgumentParser:
    """Returns a parser for `CONFIG [section.key=value …]`; a command adds its own options to it."""
    built = Parser(description=description)
    built.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file, or a folder that holds config.yaml")
    built.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings that win over the file's")
    return built


def parse(with_options: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """Parses `argv` with a parser made by `parser`, options and overrides in any order. Raises LwzError."""
    arguments = with_options.parse_intermixed_args(list(argv))
    return load_config(arguments.config, arguments.overrides), arguments


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line, like all other errors, and prints on rank 0 only.

    Arguments of `type=Path` are read by `file_path`. With `parse_intermixed_args` a `section.key=value` is an override
    behind the values of an option that takes several, too, unless there is a file of this name.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", Path, file_path)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses options and positional arguments in any order."""
        return super().parse_intermixed_args(self._overrides_first(sys.argv[1:] if args is None else args), namespace)

    def _overrides_first(self, args: Sequence[str]) -> list[str]:
        """Moves the overrides among the values of an option that takes several before it. argparse would take them all."""
        several = [name for action in self._actions if action.nargs == "+" for name in action.option_strings]
        ordered: list[str] = []
        option = None  # where the option stands whose values these are
        for text in args:
            if text.startswith("-"):
                option = len(ordered) if any(name.startswith(text) for name in several) else None
            elif option is not None and _OVERRIDE.match(text) and not os.path.exists(text):  # noqa: PTH110 (Path raises for long names)
                ordered.insert(option, text)
                option += 1
                continue
            ordered.append(text)
        return ordered

    def error(self, message: str) -> NoReturn:
        """Raises UsageError instead of leaving the process."""
        usage = " ".join(self.format_usage().split())
        raise UsageError(f"{message} ({usage})")

    def _print_message(self, message: str, file: Any = None) -> None:
        if environment.rank() == 0:
            super()._print_message(message, file)


def file_path(text: str) -> Path:
    """Parses a path, with `~` expanded. Raises PathError."""
    try:
        return Path(user_path(text))
    except ValueError as error:
        raise PathError(str(error)) from error


def check_writable(path: Path, option: str) -> None:
    """Checks, before any work is done for it, that the file `path` can be written. Raises UsageError."""
    folder = path.parent
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder, but a file will be written: name a file")
    if not folder.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {folder}: make it, or name another one")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: {folder} cannot be written: change its permissions, or name another folder")


def check_folder(path: Path, option: str) -> Path:
    """Checks, before any work is done for it, that the folder `path` can be made and written. Makes nothing.

    Returns it. Raises UsageError.
    """
    place = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
    if not place.is_dir():
        where = "" if place == path else f"{place} "
        raise UsageError(f"{option} {path}: {where}is a file, but a folder will be written: name a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: {place} cannot be written: change its permissions, or name another folder")
    return path


def check_not_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Checks, before anything is written, that no output is one of the inputs, by name or link. Raises DataError."""
    read = {os.path.realpath(path) for path in inputs}  # Path.resolve raises RuntimeError for links in a circle
    for path in outputs:
        if os.path.realpath(path) in read:
            raise DataError(path, "is one of the inputs; name another output")


def serving_parser(command: str, description: str, model: str) -> Parser:
    """Returns a parser with the options that all our servers share.

    `model` is the model's name for clients unless `--served-model-name` gives another.
    """
    parser = Parser(prog=f"lwz {command}", description=description)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder with tokenizer.json")
    parser.add_argument("--port", type=option_types.port, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default loopback only")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name that clients call this server by (Host header); may be repeated",
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=option_types.not_negative, default=0, help="CPU threads; 0: all cores")
    parser.add_argument("--served-model-name", default=model)
    return parser


def console(*, stderr: bool = False) -> Console:
    """Returns a console that prints on rank 0 and is quiet on all others."""
    return _Console(stderr=stderr, quiet=environment.rank() != 0, soft_wrap=True, highlight=False)


class _Console(Console):
    """A console that prints control characters of a given text as escapes."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints texts and tables as rich does."""
        shown = (printable(item, keep="\n") if isinstance(item, str) else item for item in objects)
        super().print(*shown, **options)


class _Lines(logging.Formatter):
    """The form of our log lines. What they quote from engines, judges and files cannot move a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, with its traceback if it has one."""
        return printable(super().format(record), keep="\n\t")


def progress_bar(on: Console) -> Progress:
    """Returns a bar with counts, a field `note` and times. It shows on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, console=on, disable=not on.is_terminal)


def start_log() -> None:
    """Sets up the output streams and our own log.

    A character that the terminal cannot show becomes an escape such as `\\u2192`. Information such as the choices made
    goes to stdout, on rank 0 only. Warnings of every rank go to stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    log = logging.getLogger("megatron_lwz")
    log.setLevel(logging.INFO if environment.rank() == 0 else logging.WARNING)
    for handler in list(log.handlers):  # `run` may be called again with other streams
        log.removeHandler(handler)
    chosen, warnings = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    chosen.addFilter(lambda record: record.levelno < logging.WARNING)
    warnings.setLevel(logging.WARNING)
    for handler in (chosen, warnings):
        handler.setFormatter(_Lines("%(levelname)s: %(message)s"))
        log.addHandler(handler)


def _lost_peer(error: BaseException) -> LwzError | None:
    if "torch.distributed" not in sys.modules:
        return None
    from megatron_lwz.distributed import heartbeat  # a command without ranks does not import torch for it

    line = heartbeat.lost_peer(error)
    return None if line is None else LwzError(line).with_traceback(error.__traceback__)


def _say_stopped(advice: str) -> None:
    if environment.rank() == 0:
        name = signal.Signals(termination.requested() or signal.SIGINT).name
        os.write(2, f"stopped by {name}{': ' + advice if advice else ''}\n".encode())


def _say(text: str) -> None:
    """Prints the line on rank 0."""
    if _outlasts_rank_zero() and environment.rank() == 0:
        sys.stderr.write(f"{text}\n")


def _leave_note(text: str) -> None:
    """Tells the script of `lwz launch` that the run must be started again. torchrun's status does not say it."""
    if (note := environment.get(UNFINISHED_NOTE)) is not None and environment.rank() == 0:
        write_text(Path(note), f"{text}\n")


def _outlasts_rank_zero() -> bool:
    """Waits, on a rank above 0, for torchrun to end it because rank 0 has ended. Returns whether it was not."""
    if environment.rank():
        try:
            time.sleep(_GRACE_SECONDS)
        except (termination.Terminated, KeyboardInterrupt):
            return False
    return True


def _report(error: LwzError, *, verbose: bool) -> None:
    if not _outlasts_rank_zero():
        return
    rank = environment.rank()
    text = printable("".join(traceback.format_exception(error)).rstrip(), keep="\n\t") if verbose else str(error)
    where = f" (rank {rank})" if rank else ""
    sys.stderr.write(f"error{where}: {text}\n")
