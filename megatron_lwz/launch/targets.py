"""The targets: how each is rendered, how its file is called, and the command that starts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_lwz.launch import kubernetes, skypilot, slurm, torchrun
from megatron_lwz.launch.description import Launch, Target


@dataclass(frozen=True)
class Kind:
    """One target. `start`: the command before the file's name."""

    render: Callable[[Launch], str]
    file: str
    start: Callable[[Launch], Sequence[str]]


def _sky(launch: Launch) -> list[str]:
    """SkyPilot takes each secret from the environment of this command, by its name."""
    return ["sky", "jobs", "launch", *(f"--secret={name}" for name in launch.secrets)]


TARGETS: dict[Target, Kind] = {
    "torchrun": Kind(torchrun.render, "torchrun.sh", lambda _: ["bash"]),
    "slurm": Kind(slurm.render, "slurm.sh", lambda _: ["sbatch"]),
    "kubernetes": Kind(kubernetes.render, "kubernetes.yaml", lambda _: ["kubectl", "apply", "-f"]),
    "skypilot": Kind(skypilot.render, "skypilot.yaml", _sky),
}
