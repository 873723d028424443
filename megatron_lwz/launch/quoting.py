"""Text from a description, in bash and YAML: it stays text, whatever it holds."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


def quoted(text: str) -> str:
    """Returns a text as one word of bash on one line: control characters become escapes of `$'…'`."""
    if not _CONTROLS.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", escaped) + "'"


def array(words: Iterable[str]) -> str:
    """Returns the value of a bash array."""
    return f"({' '.join(map(quoted, words))})"


def name_of(text: str) -> str:
    """Returns a name that Slurm, Kubernetes and SkyPilot all take, made of a text: lower-case letters, digits, '-'."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = words if words[:1].isalpha() else f"lwz-{words}".rstrip("-")
    return name[:40].rstrip("-")


def without_references(text: str) -> str:
    """Returns the value of a variable in a Kubernetes manifest so that `$(NAME)` in it stays as it is."""
    return text.replace("$", "$$")
