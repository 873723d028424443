"""A SkyPilot task: the same script on every node, which SkyPilot numbers. For `sky jobs launch`, which starts it again."""

from __future__ import annotations

from typing import Any

from megatron_lwz.launch.description import Launch
from megatron_lwz.launch.manifest import dump
from megatron_lwz.launch.script import script

UNFINISHED = 75
"""Exit status of a run that has saved and must be started again."""


def render(launch: Launch) -> str:
    """Returns the task's YAML."""
    s, sky = launch.section, launch.section.skypilot
    resources: dict[str, Any] = {
        "job_recovery": {"max_restarts_on_errors": s.max_restarts, "recover_on_exit_codes": [UNFINISHED]}
    }
    if s.gpus_per_node:
        resources = {"accelerators": f"{sky.accelerator}:{s.gpus_per_node}", **resources}
    if s.image is not None:
        resources["image_id"] = f"docker:{s.image}"
    task: dict[str, Any] = {"name": launch.name, "num_nodes": launch.all_nodes, "resources": resources}
    task["volumes"] = {sky.mount: sky.volume}
    if launch.secrets:
        task["secrets"] = dict.fromkeys(launch.secrets)
    task["run"] = script(launch, "skypilot")
    return dump(task)
