"""Runs checks on several ranks under torchrun's own agent (gloo, CPU).

    from tests.support.ranks import run_ranks

    results = run_ranks("tests.some.module:log_probs", ranks=2, layouts=["tp2", "pp2"])

calls `log_probs(layouts=[...])` on every rank, with the repository root on the path, and returns the ranks' return
values in rank order. Arguments and return values travel as JSON. If any rank raises, `run_ranks` raises
AssertionError with the workers' output. Imports take longer than most checks, so one process per test session makes them,
and agents and ranks are forked from it. Let the function return a dict of measurements, keep it in a module-scoped
fixture, and assert one invariant per test. The function starts and ends its layouts itself (`launch.initialize(config)`,
any number of times with other layouts); the process group is closed by the harness.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from megatron_lwz.distributed import environment
from tests.support import warm
from tests.support.stages import ROOT, variables

_OUTPUT_SHOWN = 8000


def run_ranks(target: str, *, ranks: int, timeout: float = 900.0, **arguments: Any) -> list[Any]:
    """Calls `package.module:function(**arguments)` on `ranks` ranks; returns their values (JSON) in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        code = _launcher().launch(target, ranks, folder, json.dumps(arguments), timeout)
        output = Path(folder, "output").read_text(errors="replace")[-_OUTPUT_SHOWN:]
        if code is None:
            _launcher.cache_clear()
            raise AssertionError(f"{target} on {ranks} ranks: no end after {timeout:g} s\n{output}")
        if code:
            errors = "\n".join(f"{file.stem}: {file.read_text()}" for file in sorted(Path(folder).glob("*.error")))
            raise AssertionError(f"{target} on {ranks} ranks failed\n{errors}\n{output}")  # a signal leaves no error
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


class _Launcher:
    """The process that has made the imports; it ends with its input, and so with the tests."""

    def __init__(self) -> None:
        self._process = warm.Popen(
            [sys.executable, "-m", "tests.support.ranks"], cwd=ROOT, env=variables(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        atexit.register(self._kill)

    def launch(self, target: str, ranks: int, folder: str, arguments: str, timeout: float) -> int | None:
        """The agent's exit status, its output in `folder`; None if it took too long, then all is killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([target, ranks, folder, arguments, variables()]) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self._kill()
            return None
        return int(self._process.stdout.readline())

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


_launcher = cache(_Launcher)


def _serve() -> None:
    """Forks an agent for each line of the input, and answers with its exit status."""
    gc.disable()
    for module in ("megatron_lwz.training.grpo", "numpy.random"):  # the last: else at first use
        importlib.import_module(module)
    gc.enable()
    gc.freeze()  # else each collection in a rank looks at all that was imported, and has its pages copied
    for line in sys.stdin:
        target, ranks, folder, arguments, now = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ.clear()
            os.environ.update(now)  # a test may have set or unset variables since
            _lead(target, ranks, folder, arguments)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _lead(target: str, ranks: int, folder: str, arguments: str) -> None:
    """The agent's process, which ends here."""
    output = os.open(Path(folder, "output"), os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id="checks", rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", max_restarts=0, start_method="fork",
    )  # fmt: skip
    code = 1
    try:
        module, _, name = target.partition(":")
        elastic_launch(config, _work)(getattr(importlib.import_module(module), name), folder, arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(function: Callable[..., Any], folder: str, arguments: str) -> None:
    faulthandler.enable()  # a crash in a library then says where, in the agent's output
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

    _serve()
