"""Sizes and SHA-256 of files: what was written is what is read.

SHA-256 because `sha256sum` checks it without this project, and because current processors have instructions for it: one
core took 0.8 CPU s per GiB (docs/reliability.md), on two cores of a machine that did other work.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any, NamedTuple


class FileSum(NamedTuple):
    """Size in bytes and SHA-256 (64 hex digits) of a file."""

    size: int
    sha256: str


class HashedFile:
    """A binary file that is written; its FileSum is known without reading it again."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: Any) -> int:
        """Writes bytes, or anything else with a buffer."""
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._hash.update(view)
        self._size += len(view)
        return len(view)

    def flush(self) -> None:
        """Flushes the file."""
        self._file.flush()

    def tell(self) -> int:
        """Returns the number of bytes written so far."""
        return self._size

    def sum(self) -> FileSum:
        """Returns size and SHA-256 of what was written so far."""
        return FileSum(self._size, self._hash.hexdigest())


def sum_of_bytes(content: bytes) -> FileSum:
    """Returns the FileSum of a file with this content."""
    return FileSum(len(content), hashlib.sha256(content).hexdigest())


def sum_of_file(path: Path) -> FileSum:
    """Reads a file and returns its FileSum. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileSum(file.tell(), digest)


def difference(path: Path, expected: FileSum, *, contents: bool = True) -> str | None:
    """Returns what is wrong with a file, None if nothing is. Without `contents` it looks at the size alone."""
    try:
        size = path.stat().st_size
        if size != expected.size:
            return f"{path.name} has {size} bytes, {expected.size} were written"
        if contents and sum_of_file(path) != expected:
            return f"{path.name} is not as it was written: its SHA-256 is another"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return None
