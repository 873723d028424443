"""Files that tests write."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """One row per line; makes the folder; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def stamps(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """The path of every file under `folder`, what is in it, when it was last written, and its inode."""
    found = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        str(path.relative_to(folder)): (path.read_bytes(), stat.st_mtime_ns, stat.st_ino)
        for path, stat in found.items()
    }


def contents(folder: Path) -> dict[str, bytes]:
    """The path of every file under `folder`, and what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
