"""The bash script of a target: settings, what a node does, and which node does what."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from megatron_lwz.launch.description import Launch

HEAD = "# Written by lwz launch (docs/launch.md). Change the description, not this file.\n"
STRICT = "set -euo pipefail\n"


def script(launch: Launch, target: str, *, directives: Sequence[str] = (), more: Sequence[tuple[str, str]] = ()) -> str:
    """Returns the script. `directives` follow its first line; `more` are quoted settings of this target alone."""
    top = "".join(f"{line}\n" for line in ("#!/usr/bin/env bash", *directives))
    settings = launch.settings() + "".join(f"{name}={value}\n" for name, value in more)
    return f"{top}{HEAD}{STRICT}\n{settings}\n{template('node')}{template(target)}"


def template(name: str) -> str:
    """Returns the text of templates/NAME.sh."""
    return (files("megatron_lwz.launch") / "templates" / f"{name}.sh").read_text(encoding="utf-8")
