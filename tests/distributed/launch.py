"""Runs checks on several ranks under torchrun's own agent (gloo, CPU).

    from tests.distributed.launch import run_ranks

    results = run_ranks("tests.distributed.checks_layouts:log_probs", ranks=2, layouts=["tp2", "pp2"])

calls `log_probs(layouts=[...])` on every rank, with the repository root on the path, and returns the ranks' return
values in rank order. Arguments and return values travel as JSON. If any rank raises, `run_ranks` raises
AssertionError with the workers' output. Ranks are forked from a process that has imported the target, for its imports
take longer than most checks; a launch still costs some seconds, so group many checks into one: let the function return a
dict of measurements, keep it in a module-scoped fixture, and assert one invariant per test. The function starts and ends its layouts itself (`launch.initialize(config)`, any number of times
with other layouts); the process group is closed by the harness.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_lwz.distributed import environment
from tests.end_to_end.stages import ROOT, variables

_OUTPUT_SHOWN = 8000


def run_ranks(target: str, *, ranks: int, timeout: float = 240.0, **arguments: Any) -> list[Any]:
    """Calls `package.module:function(**arguments)` on `ranks` ranks; returns their values (JSON) in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.distributed.launch", target, str(ranks), folder, json.dumps(arguments)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=variables(), capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{target} on {ranks} ranks: no end after {timeout:g} s\n{error.stderr!r}") from error
        if done.returncode:
            errors = "\n".join(f"{file.stem}: {file.read_text()}" for file in sorted(Path(folder).glob("*.error")))
            output = (done.stdout + done.stderr)[-_OUTPUT_SHOWN:]
            raise AssertionError(f"{target} on {ranks} ranks failed\n{errors or output}")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def _launch(target: str, ranks: str, folder: str, arguments: str) -> None:
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(ranks),
        run_id="checks",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, _work)(function, folder, arguments)


def _work(function: Callable[..., Any], folder: str, arguments: str) -> None:
    try:
        value = function(**json.loads(arguments))
    except BaseException:
        (Path(folder) / f"rank {environment.rank()}.error").write_text(traceback.format_exc())
        raise
    (Path(folder) / f"{environment.rank()}.json").write_text(json.dumps(value))
    shutdown()


if __name__ == "__main__":
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from megatron_lwz.distributed.launch import shutdown

    _launch(*sys.argv[1:])
