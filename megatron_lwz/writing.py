"""Writes files whole or not at all. Where the disk refuses, the error names the file: the system's own often does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from megatron_lwz.errors import FileSystemError, refusal
from megatron_lwz.private_files import make_private


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns an error of the file system inside the block into a FileSystemError that names `path`.

    An error that names a file of another folder is left as it is.
    """
    try:
        yield
    except OSError as error:
        named = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if name is not None]
        if named and not any(name.is_relative_to(path.parent) for name in named):
            raise
        text = f"{path}: cannot be written {refusal(error, 'mend that')}, then start the same command again"
        raise FileSystemError(text) from error


@contextmanager
def replacing(path: Path, *, durable: bool = False, private: bool = False) -> Iterator[BinaryIO]:
    """Opens a temporary file, which is renamed to `path` when the block ends without an error, else removed.

    `durable`: its content is on disk before it gets its name. `private`: a new file is readable by its owner alone, a
    replaced one keeps its mode. Raises FileSystemError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path):
        try:
            if private:
                make_private(temporary, replaces=path)
            with temporary.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str, *, durable: bool = False, private: bool = False) -> None:
    """Writes a UTF-8 file, whole or not at all; see `replacing`. Raises FileSystemError."""
    content = text.encode()
    with replacing(path, durable=durable, private=private) as file:
        file.write(content)
