"""A batch script for sbatch: one job, or a heterogeneous one where the engines' nodes have options of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_lwz.config.moment import seconds_of
from megatron_lwz.launch.description import Launch
from megatron_lwz.launch.quoting import array
from megatron_lwz.launch.script import script

LAST_CALL = 60
"""Seconds before the end at which a job that still runs is requeued; less if `launch.signal_before` is short."""


def render(launch: Launch) -> str:
    """Returns the batch script."""
    s = launch.section
    margin = min(LAST_CALL, seconds_of(s.signal_before) // 2)
    more = (
        ("requeues", str(s.max_requeues)),
        ("margin", str(margin)),
        ("container", array(_container(launch, s.image))),
        ("engine_container", array(_container(launch, s.engines.image or s.image))),
    )
    lines = [f"#SBATCH {option}" for option in _options(launch)]
    return script(launch, "slurm", directives=lines, more=more)


def _options(launch: Launch) -> Iterator[str]:
    """Yields what follows #SBATCH. Every value has been checked to hold no space, quote or line break."""
    s, e = launch.section, launch.section.engines
    apart = bool(e.nodes and e.slurm_options)
    yield f"--job-name={launch.name}"
    yield from _nodes(launch, s.nodes if apart else launch.all_nodes, s.slurm_options)
    yield "--requeue"
    yield "--open-mode=append"
    if apart:
        yield "hetjob"
        yield from _nodes(launch, e.nodes, e.slurm_options)


def _nodes(launch: Launch, nodes: int, further: Sequence[str]) -> Iterator[str]:
    s = launch.section
    own = {option.partition("=")[0] for option in further}
    given = {"--nodes": str(nodes), "--ntasks-per-node": "1"}
    if s.gpus_per_node:
        given["--gpus-per-node"] = str(s.gpus_per_node)
    if s.time is not None:
        given |= {"--time": _limit(seconds_of(s.time)), "--signal": f"USR1@{seconds_of(s.signal_before)}"}
    if s.partition is not None:
        given["--partition"] = s.partition
    if s.account is not None:
        given["--account"] = s.account
    yield from (f"{name}={value}" for name, value in given.items() if name not in own)
    yield from further


def _limit(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02d}:{minutes:02d}:{rest:02d}"


def _container(launch: Launch, image: str | None) -> list[str]:
    if image is None:
        return []
    mounts = ",".join(f"{folder}:{folder}" for folder in (launch.folder, *launch.section.mounts))
    return [f"--container-image={image}", f"--container-mounts={mounts}", f"--container-workdir={launch.folder}"]
