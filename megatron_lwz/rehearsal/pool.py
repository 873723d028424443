"""Rehearses cases from an ordinary process: starts the process with the fake device, and asks it case by case."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_lwz.distributed import environment
from megatron_lwz.rehearsal import shim
from megatron_lwz.rehearsal.case import Case, Report, report_from

ENGINE = Path(sys.prefix, "transformer_engine")
"""Where `make setup` puts Transformer Engine's Python, in no environment's path."""


def rehearse(cases: Iterable[Case], *, engine: Path | None = None) -> Iterator[Report]:
    """Yields the report of each case, in order.

    `engine` is a folder with Transformer Engine's Python (`pip install --no-deps --target`); None: as if not installed.
    Raises EnvironmentSetupError where the fake device cannot be compiled. What a case prints goes to stderr.
    """
    command = [sys.executable, "-W", "ignore", "-m", f"{__package__}.worker", str(shim.build())]
    command += [str(engine)] if engine else []
    extra = {"TORCHDYNAMO_DISABLE": "1", "NVTE_PROJECT_BUILDING": "1"}  # no compiler; no library of Transformer Engine
    extra["OMP_NUM_THREADS"] = "1"  # each case is a fork: it would wait for the worker's other threads, which it lacks
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment.child_environment(**extra)
    ) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        for case in cases:
            worker.stdin.write(json.dumps(case.__dict__) + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
            if not answer:
                yield Report(case.name, error=f"the rehearsal's process ended with status {worker.wait()}")
                return
            yield report_from(json.loads(answer))
