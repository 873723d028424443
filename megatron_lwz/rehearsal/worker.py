"""`python -m megatron_lwz.rehearsal.worker LIBRARY [FOLDER]`: cases as JSON lines in, reports as JSON lines out.

The imports, which take longer than most cases, are made once, and so is much of what FakeTensors do at the first use of
an operation; each case runs in a fork. `pool` starts this process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

from megatron_lwz.rehearsal import shim
from megatron_lwz.rehearsal.case import Case, Report
from megatron_lwz.rehearsal.small import BY_NAME

_IMPORTED = ("torch._dynamo", "megatron_lwz.training.grpo", "megatron_lwz.kernels.grpo_loss")


def main(library: Path, engine: Path | None = None) -> None:
    """Serves until its input ends. `engine` is a folder with Transformer Engine's Python."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get between the reports
    loaded = shim.load(library)
    cuda = importlib.import_module("megatron_lwz.rehearsal.cuda")  # the first import of torch
    shim.install_guard(loaded)
    cuda.install()
    if engine is not None:
        importlib.import_module("megatron_lwz.rehearsal.engine").install(engine)
    run = importlib.import_module("megatron_lwz.rehearsal.run")
    for name in _IMPORTED:
        importlib.import_module(name)
    # Warms up; its outcome does not matter. Forward only: a process whose autograd had threads cannot be forked.
    run.rehearse_here(BY_NAME["one GPU"].case("score", 0))
    importlib.import_module("megatron_lwz.distributed.launch").shutdown()
    gc.freeze()  # else each collection in a fork has the pages of the imports copied
    for line in sys.stdin:
        case = Case(**json.loads(line))
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "report.json")
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    target.write_text(json.dumps(run.rehearse_here(case).as_json()), encoding="utf-8")
                sys.stderr.flush()
                os._exit(0)
            os.waitpid(child, 0)
            died = Report(case.name, error="the process of the case died").as_json()
            answers.write((target.read_text(encoding="utf-8") if target.exists() else json.dumps(died)) + "\n")
            answers.flush()
    os._exit(0)  # Triton's bindings print pages about what they leak at a regular end


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
