"""A file of responses that grows during generation. Generation resumes with it after the process was killed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.partial import Partials
from megatron_lwz.evaluation.tasks import PROMPT_KEYS, Task, read_rows, row_id


class ResponseFile:
    """A JSONL file of responses, one per (task, sample). A row is on disk when `add` returns.

    `<path>.settings.json` records the settings of the first responses. Other settings are refused, so that a file never
    mixes two models or samplings. `partials` holds the unfinished responses. One process at a time may hold the file.
    """

    def __init__(self, path: Path, tasks: Sequence[Task], settings: Mapping[str, Any]) -> None:
        """Opens or creates the file. Drops a truncated last line. Raises DataError."""
        self.path = path
        self.done: set[tuple[str, int]] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("ab+")
        except OSError as error:
            raise DataError(path, f"cannot be written ({error.strerror})") from error
        try:
            self._lock()
            self._drop_torn_line()
            self._read(tasks)
            self._check(settings)
            asked = hashlib.sha256(json.dumps([(task.id, task.prompt) for task in tasks]).encode()).hexdigest()
            self.partials = Partials(path, {**settings, "prompts": asked}, self.done)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ResponseFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.partials.close()
        self._file.close()

    def add(self, key: tuple[str, int], row: Mapping[str, Any]) -> None:
        """Appends the row of a (task, sample) that the file does not hold yet."""
        assert key not in self.done
        self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.add(key)
        self.partials.drop(key)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(self.path, "another process is writing this file: wait for it, or end it") from error

    def _drop_torn_line(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)

    def _read(self, tasks: Sequence[Task]) -> None:
        prompts = {task.id: task.prompt for task in tasks}
        for line, row in read_rows(self.path):
            key = (row_id(row, len(self.done)), row.get("sample", 0))
            if key in self.done:
                raise DataError(self.path, f"response {key[0]!r} stands there twice; remove one of them", line=line)
            prompt = next((row[name] for name in PROMPT_KEYS if name in row), None)
            if prompt != prompts.get(key[0], prompt):
                advice = f"response {key[0]!r} answers another prompt: choose another output file"
                raise DataError(self.path, advice, line=line)
            self.done.add(key)

    def _check(self, settings: Mapping[str, Any]) -> None:
        path = self.path.with_name(self.path.name + ".settings.json")
        if not self.done:
            path.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(path, f"cannot be read, so it is unknown how {self.path} was made ({error})") from error
        for name, value in json.loads(json.dumps(dict(settings))).items():
            if before.get(name) != value:
                advice = f"was made with {name} = {before.get(name)!r}, not {value!r}: choose another output file"
                raise DataError(self.path, advice)
