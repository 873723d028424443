"""Ways to make an input wrong. Each returns a function of the folder, or several in turn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Spoil = Callable[[Path], None]


def put(name: str, content: bytes | str) -> Spoil:
    """Writes a file."""
    data = content.encode() if isinstance(content, str) else content

    def spoil(place: Path) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return spoil


def rows(name: str, *content: Any) -> Spoil:
    """Writes JSON lines."""
    return put(name, "".join(json.dumps(row) + "\n" for row in content))


def append(name: str, content: bytes) -> Spoil:
    """Adds to the end of a file."""
    return lambda place: put(name, (place / name).read_bytes() + content)(place)


def replace(name: str, old: bytes, new: bytes) -> Spoil:
    """Replaces a part of a file, which must be there."""

    def spoil(place: Path) -> None:
        content = (place / name).read_bytes()
        assert old in content, f"{name} has no {old!r}"
        (place / name).write_bytes(content.replace(old, new, 1))

    return spoil


def cut(name: str, size: int) -> Spoil:
    """Keeps only the first bytes of a file; with a negative size, all but the last."""
    return lambda place: put(name, (place / name).read_bytes()[:size])(place)


def flip(name: str, at: int) -> Spoil:
    """Changes a bit of the byte `at`; from the end if that is negative."""

    def spoil(place: Path) -> None:
        content = bytearray((place / name).read_bytes())
        content[at] ^= 1
        (place / name).write_bytes(content)

    return spoil


def remove(name: str) -> Spoil:
    """Deletes a file or folder."""

    def spoil(place: Path) -> None:
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def folder(name: str) -> Spoil:
    """Makes an empty folder, in place of what was there."""

    def spoil(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).mkdir()

    return spoil


def link(name: str, target: str) -> Spoil:
    """Makes a symbolic link."""
    return lambda place: (place / name).symlink_to(target)


def mode(name: str, bits: int) -> Spoil:
    """Changes who may do what."""
    return lambda place: (place / name).chmod(bits)


def both(*spoils: Spoil) -> Spoil:
    """Does one after the other."""

    def spoil(place: Path) -> None:
        for one in spoils:
            one(place)

    return spoil
