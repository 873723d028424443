"""One run folder as the pages see it: its settings, its metrics and its rollouts, as of now."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from megatron_lwz.decoding import decode_yaml
from megatron_lwz.errors import DataError
from megatron_lwz.metrics import Row, read_history
from megatron_lwz.reading import read_text
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.ui.index import Index
from megatron_lwz.ui.notes import Notes
from megatron_lwz.ui.tokens import Tokens

Stamp = tuple[tuple[int, int], ...]


class Run:
    """A run folder. `name` identifies it in addresses. Nothing of the folder but the notes is ever written."""

    def __init__(self, root: Path, name: str, *, tokenizer: Path | None = None) -> None:
        """Raises DataError for a folder without metrics and journal."""
        self.name = name
        self.paths = RunPaths(root)
        if not self.paths.metrics.is_file() and not self.paths.journal.is_file():
            raise DataError(root, "holds neither metrics.jsonl nor journal.sqlite: is this a run folder?")
        self.notes = Notes(self.paths.notes)
        self.trouble = ""
        """Why the journal cannot be read just now; empty if it can."""
        self._tokenizer = tokenizer
        self._scratch = tempfile.TemporaryDirectory(prefix="lwz-ui-")
        self._index: Index | None = None
        self._inode = -1
        self._lock = threading.Lock()
        self._seen: tuple[Stamp, list[Row]] | None = None

    def close(self) -> None:
        """Ends the index."""
        with self._lock:
            self._end_index()
        self._scratch.cleanup()

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The run's settings as they stand in config.yaml, unchecked; empty if there is no such file."""
        if not self.paths.config.is_file():
            return {}
        try:
            found = decode_yaml(read_text(self.paths.config))
        except (ValueError, yaml.YAMLError) as error:
            raise DataError(self.paths.config, f"is no YAML ({' '.join(str(error).split())[:200]})") from error
        return found if isinstance(found, dict) else {}

    def setting(self, key: str, default: Any = None) -> Any:
        """Returns the setting `section.key`, `default` where it is missing."""
        found: Any = self.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return default if found is None else found

    @property
    def title(self) -> str:
        """The run's name, else that of its folder."""
        return str(self.setting("run.name") or self.paths.root.resolve().name)

    def rows(self) -> Sequence[Row]:
        """Returns all rows of metrics, a row per step. Raises DataError."""
        stamp = stamp_of(self.paths.metrics, self.paths.evaluations)
        with self._lock:
            if self._seen is None or self._seen[0] != stamp:
                self._seen = stamp, read_history(self.paths.root)
            return self._seen[1]

    def stamp(self) -> Stamp:
        """Returns what changes whenever the run writes something that the pages show."""
        journal = self.paths.journal
        return stamp_of(self.paths.metrics, self.paths.evaluations, journal, journal.with_name(journal.name + "-wal"))

    def index(self) -> Index | None:
        """Returns the index of the journal; None without a readable journal (see `trouble`)."""
        with self._lock:
            try:
                inode = self.paths.journal.stat().st_ino
            except OSError:
                self.trouble = ""
                return None
            if inode != self._inode:
                self._end_index()
                try:
                    self._index = Index(self.paths.journal, Path(self._scratch.name) / f"{inode}.sqlite")
                except DataError as error:
                    self.trouble = str(error)
                    return None
                self._inode, self.trouble = inode, ""
            return self._index

    @cached_property
    def tokens(self) -> Tokens:
        """The run's tokenizer: that of the command line, else the one that the config names."""
        named = self._tokenizer or self.setting("model.tokenizer") or self.setting("model.hf")
        return Tokens(Path(named) if named else None)

    def is_running(self) -> bool:
        """Whether a process writes the run now, as far as this machine can tell."""
        try:
            return bool(self.paths.lock.read_bytes().strip())
        except OSError:
            return False

    def _end_index(self) -> None:
        if self._index is not None:
            self._index.close()
            (Path(self._scratch.name) / f"{self._inode}.sqlite").unlink(missing_ok=True)
        self._index, self._inode = None, -1


def stamp_of(*paths: Path) -> Stamp:
    """Returns size and time of change of every file, (0, 0) for one that does not exist."""
    found = []
    for path in paths:
        try:
            facts = path.stat()
            found.append((facts.st_size, facts.st_mtime_ns))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def open_runs(roots: Sequence[Path], *, tokenizer: Path | None = None) -> dict[str, Run]:
    """Returns the runs by name: the folder's name, with a number where two folders have the same. Raises DataError."""
    runs: dict[str, Run] = {}
    for root in roots:
        base = "".join(
            char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in root.resolve().name
        )
        base = base.strip(".") or "run"
        name, number = base, 2
        while name in runs:
            name, number = f"{base}-{number}", number + 1
        runs[name] = Run(root, name, tokenizer=tokenizer)
    return runs
