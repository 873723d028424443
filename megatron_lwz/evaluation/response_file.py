"""A file of responses that grows during generation. Generation resumes with it after the process was killed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from megatron_lwz.errors import DataError, refusal
from megatron_lwz.evaluation.partial import Partials
from megatron_lwz.evaluation.responses import sample_of
from megatron_lwz.evaluation.tasks import Task, prompt_of, row_id
from megatron_lwz.file_lock import FileLock, LockHeld, lock_of
from megatron_lwz.private_files import make_private
from megatron_lwz.reading import Row, parse_row, read_object, read_rows, shape_of
from megatron_lwz.writing import naming, write_text


class ResponseFile:
    """A JSONL file of responses, one per (task, sample). A row is on disk when `add` returns.

    `<path>.settings.json` records the settings of the first responses. Other settings are refused, so that a file never
    mixes two models or samplings. `partials` holds the unfinished responses. One process at a time may hold the file:
    `<path>.lock` names it meanwhile.
    """

    def __init__(self, path: Path, tasks: Sequence[Task], settings: Mapping[str, Any]) -> None:
        """Opens or creates the file. Drops a truncated last line. Raises DataError, also for a file of other origin."""
        self.path = path
        self.done: set[tuple[str, int]] = set()
        self._settings_path = path.with_name(path.name + ".settings.json")
        new = not path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(lock_of(path))
        except LockHeld as held:
            raise DataError(path, f"{held.holder} writes this file: {held.advice}") from held
        except OSError as error:
            raise DataError(path, f"cannot be written {refusal(error)}") from error
        try:
            self._open(tasks, settings)
        except BaseException:
            if new:
                path.unlink(missing_ok=True)
            self._lock.release(remove=True)
            raise

    def _open(self, tasks: Sequence[Task], settings: Mapping[str, Any]) -> None:
        make_private(self.path)
        try:
            self._file: IO[bytes] = self.path.open("ab+")
        except OSError as error:
            raise DataError(self.path, f"cannot be written {refusal(error)}") from error
        try:
            self._mend_last_line()
            self._read(tasks)
            self._check(settings)
            asked = hashlib.sha256(json.dumps([(task.id, task.prompt) for task in tasks]).encode()).hexdigest()
            self.partials = Partials(self.path, {**settings, "prompts": asked}, self.done)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ResponseFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.partials.close()
            with naming(self.path):
                self._file.close()
        finally:
            self._lock.release(remove=True)

    def add(self, key: tuple[str, int], row: Mapping[str, Any]) -> None:
        """Appends the row of a (task, sample) that the file does not hold yet."""
        assert key not in self.done
        with naming(self.path):
            self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.done.add(key)
        self.partials.drop(key)

    def _mend_last_line(self) -> None:
        """Drops a last line that a kill truncated; ends one that lacks only its line end, as some editors leave it."""
        self._file.seek(0)
        data = self._file.read()
        if not data.strip():
            return
        if not self._settings_path.is_file():
            advice = (
                f"has no {self._settings_path.name} beside it, so no responses are added: choose another output file"
            )
            raise DataError(self.path, advice)
        if shape_of(self.path) != "lines":
            raise DataError(self.path, "is not JSON lines, so no responses are added: choose another output file")
        whole = data.rfind(b"\n") + 1
        if isinstance(parse_row(data[whole:], self.path, 1), Row):
            self._file.write(b"\n")
            self._file.flush()
        elif whole < len(data):
            self._file.truncate(whole)

    def _read(self, tasks: Sequence[Task]) -> None:
        prompts = {task.id: task.prompt for task in tasks}
        for row in read_rows(self.path):
            try:
                key, prompt = (row_id(row.value, len(self.done)), sample_of(row.value)), prompt_of(row.value)
            except ValueError as error:
                raise row.error(error) from error
            if key in self.done:
                raise row.error(f"response {key[0]!r} stands there twice; remove one of them")
            if prompt != prompts.get(key[0], prompt):
                raise row.error(f"response {key[0]!r} answers another prompt: choose another output file")
            self.done.add(key)

    def _check(self, settings: Mapping[str, Any]) -> None:
        path = self._settings_path
        if not self.done:
            write_text(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            before = read_object(path)
        except DataError as error:
            raise DataError(path, f"{error.advice}; so it is unknown how {self.path} was made") from error
        for name, value in json.loads(json.dumps(dict(settings))).items():
            if before.get(name) != value:
                advice = f"was made with {name} = {before.get(name)!r}, not {value!r}: choose another output file"
                raise DataError(self.path, advice)
