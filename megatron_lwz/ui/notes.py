"""Notes and flags of a reader, in `notes.jsonl` of the run folder: one object per rollout that has one."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_lwz.errors import DataError
from megatron_lwz.reading import read_rows
from megatron_lwz.writing import write_text

MOST_CHARACTERS = 20_000


@dataclass(frozen=True)
class Note:
    """What a reader noted about one rollout."""

    group: int
    rollout: int
    flag: bool
    text: str


class Notes:
    """The notes of one run. Another program may edit the file between two calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def all(self) -> dict[tuple[int, int], Note]:
        """Returns all notes by (group, rollout). Raises DataError, which names the line."""
        found = {}
        for row in read_rows(self.path) if self.path.is_file() else ():
            try:
                note = Note(
                    int(row.value["group"]), int(row.value["rollout"]), bool(row.value["flag"]), str(row.value["text"])
                )
            except (KeyError, TypeError, ValueError) as error:
                raise row.error(f"no note: needs group, rollout, flag and text ({error!r:.100})") from error
            found[note.group, note.rollout] = note
        return found

    def get(self, group: int, rollout: int) -> Note:
        """Returns the note of a rollout; an empty one where there is none."""
        return self.all().get((group, rollout), Note(group, rollout, False, ""))

    def set(self, note: Note) -> None:
        """Replaces the note of a rollout; one without flag and text is removed. Raises DataError or FileSystemError."""
        if len(note.text) > MOST_CHARACTERS:
            raise DataError(self.path, f"a note has at most {MOST_CHARACTERS} characters, this one {len(note.text)}")
        with self._lock:
            notes = self.all()
            notes.pop((note.group, note.rollout), None)
            if note.flag or note.text.strip():
                notes[note.group, note.rollout] = note
            lines = [json.dumps(asdict(kept), ensure_ascii=False) + "\n" for _, kept in sorted(notes.items())]
            write_text(self.path, "".join(lines), private=True)
