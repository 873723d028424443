"""A script that one machine, or each of several, runs."""

from __future__ import annotations

from megatron_lwz.launch.description import Launch
from megatron_lwz.launch.script import script


def render(launch: Launch) -> str:
    """Returns the script."""
    return script(launch, "torchrun")
