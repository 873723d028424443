"""The rollout process starts without Megatron-Core: what it imports, looked at in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.paths import ROOT
from tests.support.stages import variables

PROGRAM = """
import importlib, json, pkgutil, sys
import megatron_lwz.cli.rollout_host, megatron_lwz.orchestrator
for module in pkgutil.walk_packages(megatron_lwz.orchestrator.__path__, "megatron_lwz.orchestrator."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""
FOREIGN = ("megatron", "transformer_engine", "apex", "mbridge")


def test_the_rollout_process_imports_no_megatron() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=variables(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stdout)
    assert {"megatron_lwz.cli.rollout_host", "megatron_lwz.rollout.controller", "torch"} <= set(imported)
    assert [name for name in imported if name.split(".")[0] in FOREIGN] == []
    trainers = ("megatron_lwz.training", "megatron_lwz.distributed.launch", "megatron_lwz.models.policy")
    assert [name for name in imported if name.startswith(trainers)] == []
