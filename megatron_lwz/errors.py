"""The errors that a user can cause. Each message is one line: the key or file at fault, the value, and what to do."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Literal

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Line breaks, terminal controls, marks that change the direction of text, and halves of surrogate pairs."""
_PASSWORD = re.compile(r"(?<=://)[^/?#@\s'\"]{1,200}@")
"""A user and password in an address."""


class LwzError(Exception):
    """Base of every error that a user can fix. `cli` prints it as one line and exits with status 2.

    Names and values from files may hold line breaks and terminal controls. The message shows them as escapes, and leaves
    out passwords in addresses.
    """

    def __init__(self, message: object = "") -> None:
        shown = _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], str(message))
        super().__init__(_PASSWORD.sub("***@", shown))


class ConfigError(LwzError):
    """A config key has a value that cannot be used."""

    def __init__(self, key: str, value: object, advice: str) -> None:
        super().__init__(f"config key '{key}' = {value!r}: {advice}")
        self.key = key


class DataError(LwzError):
    """A row or file of data cannot be read. `line` counts from 1, in `unit`s: a Parquet file has rows, not lines.

    In unit "byte" it is the offset from 0 of the line, where the number of the line is unknown.
    """

    def __init__(
        self, path: Path | str, advice: str, *, line: int | None = None, unit: Literal["line", "row", "byte"] = "line"
    ) -> None:
        where = f"{path}, {unit} {line}" if line is not None else str(path)
        super().__init__(f"{where}: {advice}")
        self.advice = advice


class CheckpointError(LwzError):
    """A checkpoint or weight folder cannot be used."""

    def __init__(self, path: Path | str, advice: str) -> None:
        super().__init__(f"checkpoint {path}: {advice}")
        self.advice = advice


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint is missing or not as it was written. `fault` names the file."""

    def __init__(self, path: Path | str, fault: str) -> None:
        super().__init__(path, f"{fault}: copy it again, or use another checkpoint")
        self.fault = fault


class FileSystemError(LwzError):
    """The system refuses a path: it does not exist, may not be written, or its disk is full."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
"""Errors of writing to an open file. They name no path."""


def refused_path(error: BaseException) -> FileSystemError | None:
    """Returns the one-line form of an error of the file system; None if the error comes from something else."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _FULL):
        where = "the disk" if error.filename is None else error.filename
        return FileSystemError(f"{where}: cannot be used ({error.strerror}); --traceback shows where")
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        return FileSystemError(f"{error.object}: no {error.encoding} name: use a UTF-8 locale, e.g. LC_ALL=C.UTF-8")
    return None


class EngineError(LwzError):
    """An inference engine, judge or reward server does not answer as its API contract requires."""

    def __init__(self, url: str, advice: str) -> None:
        super().__init__(f"engine {url}: {advice}")
        self.advice = advice


class EnvironmentSetupError(LwzError):
    """The machine, the launcher or an installed package cannot run the configuration."""
