"""The keys in which two configs differ."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.config.kept import KEPT, kept_key
from megatron_lwz.config.tree import Config

_OF_THE_START = ("run.dir", "run.resume", "run.allow_change", "launch.")
"""They say how to start, not what runs. A run folder may be moved."""
_SHOWN = 100
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Change:
    """One key whose value differs."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


def changes(old: Config, new: Config) -> list[Change]:
    """Returns the keys that differ, in the order of the config; of a section that is null on one side only its name."""
    found = _differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
    return [change for change in found if not change.key.startswith(_OF_THE_START) and not _same_place(change)]


def _differences(old: dict[str, Any], new: dict[str, Any], above: str = "") -> Iterator[Change]:
    for name in [*new, *(name for name in old if name not in new)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{above}{name}.")
        elif before != after:
            yield Change(above + name, before, after)


def _same_place(change: Change) -> bool:
    """Whether both sides spell the same paths."""
    name = kept_key(change.key)
    return name is not None and KEPT[name].path and _places(change.old) == _places(change.new)


def _places(value: Any) -> list[str]:
    given = value if isinstance(value, list) else [value]
    return [os.path.realpath(Path(path)) if path is not None else "" for path in given]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 2]} …"
