"""The errors that a user can cause. Each message is one line: the key or file at fault, the value, and what to do."""

from __future__ import annotations

import errno
import re
import unicodedata
from pathlib import Path
from traceback import walk_tb
from typing import Literal

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of controls (of a terminal too: ESC, CSI), lone surrogates, and separators of lines."""
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that change the order in which a terminal shows characters."""
_PASSWORD = re.compile(r"(?<=://)[^/?#@\s'\"]{1,200}@")
"""A user and password in an address."""


_QUOTED = 300
_SHORTEST_SECRET = 8
"""Shorter keys are words of other texts too."""
_secrets: set[str] = set()


def conceal(secret: str | None) -> None:
    """Makes this process show `***` in place of a key or token, whoever quotes it: servers do so in their errors."""
    if secret is not None and len(secret) >= _SHORTEST_SECRET:
        _secrets.add(secret)


def concealed(text: str) -> str:
    """Returns a text without the secrets that this process knows. Call it before a text is cut."""
    for secret in _secrets:
        text = text.replace(secret, "***")
    return text


def printable(text: str, keep: str = "") -> str:
    """Returns a text of foreign origin in a form that a terminal can show: every control character is an escape.

    `\\x1b`, `\\n`, `\\u202e`, but for the characters in `keep`; and it is `concealed`. Other text stays as it is.
    """
    text = concealed(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in keep or not _controls(char) else ascii(char)[1:-1] for char in text)


def _controls(char: str) -> bool:
    return unicodedata.category(char) in _UNPRINTABLE or char in _DIRECTIONS


def quote(value: object) -> str:
    """Returns a value for an error's line: at most 300 characters of it, also of one that Python does not print."""
    try:
        text = repr(value)
    except ValueError:  # YAML reads whole numbers of any size, but in decimal Python prints 4,300 digits
        return "(with a number of more than 4,300 digits)"
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


class LwzError(Exception):
    """Base of every error that a user can fix. `cli` prints it as one line and exits with status 2.

    Its text may quote foreign files and servers, so `str` gives a single `printable` line. Passwords in addresses are left
    out.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_PASSWORD.sub("***@", str(message)))

    def __str__(self) -> str:
        return printable(super().__str__().replace("\n", " "))


class Resumable(LwzError):
    """A run has saved and ended before its last step, because it was asked to. No error; `cli` prints it as one line."""


class Interrupted(LwzError):
    """The trainer waits no longer for rollouts, because the run must save and end. Never leaves the training loop."""


class ConfigError(LwzError):
    """A config key has a value that cannot be used."""

    def __init__(self, key: str, value: object, advice: str) -> None:
        super().__init__(f"config key '{key}' = {quote(value)}: {advice}")
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
_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file, check the path",
    errno.EISDIR: "is a folder, name a file",
    errno.EEXIST: "is a file, name a folder",
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.ELOOP: "its symbolic links lead in a circle, name the file itself",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room within its quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "its disk is read-only, mount it for writing",
    errno.EIO: "its disk fails, use a copy on another one",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def refusal(error: BaseException, other: str = "--traceback shows where") -> str:
    """Returns why the system refuses a path, and what to do: `(No such file or directory): check the path`.

    `other` is the advice where there is none of ours.
    """
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return f"({reason}): {_REMEDIES.get(getattr(error, 'errno', None) or 0, other)}"


def refused_path(error: BaseException) -> FileSystemError | None:
    """Returns the one-line form of an error of the file system; None if the error comes from something else."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _FULL):
        where = "the disk" if error.filename is None else error.filename
        return FileSystemError(f"{where}: cannot be used {refusal(error)}")
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        return FileSystemError(f"{error.object}: no {error.encoding} name: use a UTF-8 locale, e.g. LC_ALL=C.UTF-8")
    return None


_TRIED = re.compile(r"[Tt]ried to allocate ([\d.,]+ \w+)")


class OutOfMemory(LwzError):
    """A process has not the memory, of its GPU or of the machine, that an operation needs."""


def lacks_memory(error: BaseException) -> bool:
    """Returns whether an error says that there is no memory: torch's own for GPUs and CPUs, or Python's."""
    of_torch = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return of_torch or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def asked_for(error: BaseException) -> str:
    """Returns ` (tried to allocate 2.00 GiB)` of a lack of memory; empty where the error does not say it."""
    size = _TRIED.search(str(error))
    return f" (tried to allocate {size[1]})" if size else ""


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """Returns the one-line form of a lack of memory, with the place in our code; None for another error."""
    if not lacks_memory(error):
        return None
    stack = [(frame.f_globals.get("__name__", ""), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)]
    ours = [place for place in stack if place[0].startswith("megatron_lwz.") and ".cli." not in place[0]]
    where = f" in {'.'.join(ours[-1])}" if ours else ""
    advice = "see 'Out of memory' in docs/troubleshooting.md; --traceback shows the whole message"
    full = OutOfMemory(f"out of memory{where}{asked_for(error)}: {advice}")
    full.__cause__ = error
    return full


class EngineError(LwzError):
    """An inference engine, judge or reward server does not answer as its API contract requires."""

    def __init__(self, url: str, advice: str) -> None:
        super().__init__(f"engine {url}: {advice}")
        self.advice = advice


class EnvironmentSetupError(LwzError):
    """The machine, the launcher or an installed package cannot run the configuration."""
