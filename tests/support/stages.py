"""The command of a training stage: started, killed, and asked for its errors.

It is forked from a process with all imports (tests/support/warm.py) unless a test asks for the `real` command line.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from megatron_lwz.distributed import environment
from megatron_lwz.metrics import read_metrics
from tests.support import warm
from tests.support.paths import ROOT

TIMED = ("seconds", "tokens_per_second", "tokens_per_second_per_gpu", "flops_per_second_per_gpu", "mfu")
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**31), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""Freed memory stays with its process: to get the same activations anew from the kernel takes a fifth of a tiny step."""
UNUSED = {"torch._dynamo", "torch._inductor", "transformers", "pandas"}
"""What no process of a training run on a CPU may import: each takes a second or so."""
_IMPORT = "import time:"
TINY = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def command(stage: str, *arguments: str, ranks: int = 1, restarts: int = 0) -> list[str]:
    """The command line of `megatron_lwz.cli.<stage>`; on several ranks under torchrun, which starts them again so often."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return [sys.executable, *(torchrun if ranks > 1 else []), "-m", f"megatron_lwz.cli.{stage}", *arguments]


def variables() -> dict[str, str]:
    """The environment of a stage: one thread per rank, no GPU; what tests define can be imported."""
    return environment.child_environment(
        OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="", PYTHONWARNINGS="ignore", **KEPT_MEMORY
    )


@contextmanager
def forked() -> Iterator[None]:
    """Inside, processes that the code starts itself are forked; this process has a stage's environment as long."""
    with ExitStack() as stack, warm.forking():
        for name, value in variables().items():
            stack.enter_context(environment.lent(name, value))
        yield


def run(
    stage: str, *arguments: str, ranks: int = 1, timeout: float = 300.0, real: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs the stage to its end, whatever that is. Of a real one it checks what its processes have imported."""
    line = command(stage, *arguments, ranks=ranks)
    if real:
        env = variables() | {"PYTHONPROFILEIMPORTTIME": "1"}
        done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)
        lines = done.stderr.splitlines(keepends=True)
        imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith(_IMPORT)}
        assert "torch" in imported and not UNUSED & imported, UNUSED & imported
        done.stderr = "".join(line for line in lines if not line.startswith(_IMPORT))
        return done
    return warm.run(line, cwd=ROOT, env=variables(), timeout=timeout)


def start(stage: str, *arguments: str, ranks: int = 1) -> subprocess.Popen[bytes]:
    """Starts the stage, silent, to be killed."""
    return warm.Popen(
        command(stage, *arguments, ranks=ranks), cwd=ROOT, env=variables(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to it and to all that it started (torchrun's workers have sessions of their own)."""
    for member in _family(process):
        member.kill()
    process.wait()


def kill_while_saving(
    process: subprocess.Popen[bytes], checkpoints: Path, *, after: int, seconds: float = 240.0
) -> Path:
    """Kills the run when a checkpoint of a step over `after` is being written; returns the half-written folder.

    All processes are stopped first and looked at again, so that the kill falls into the writing for sure.
    """
    end = time.monotonic() + seconds
    while process.poll() is None:
        assert time.monotonic() < end, "no save was caught"
        found = [path for path in checkpoints.glob(".step_*.tmp") if int(path.name[6:-4]) > after]
        if found:
            family = _family(process)
            for member in family:
                member.suspend()
            if found[0].exists():
                kill(process)
                return found[0]
            for member in family:
                member.resume()
        time.sleep(0.001)
    raise AssertionError("the run ended before a save was caught")


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []  # it had ended


def rows_of(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock says."""
    return [{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(folder / "metrics.jsonl")]


def assert_one_line_each(stage: str, config: Path, cases: Mapping[str, str], folder: Path) -> None:
    """Each of `cases` (overrides → part of the message) ends with status 2 and one line, in one process for all."""
    commands: Sequence[Sequence[str]] = [[str(config), f"run.dir={folder}", *given.split()] for given in cases]
    line = [sys.executable, "-m", "tests.support.stages", stage, json.dumps(commands)]
    done = warm.run(line, cwd=ROOT, env=variables(), timeout=180)
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["2"] * len(cases), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == len(cases)
    for message, line in zip(cases.values(), errors, strict=True):
        assert message in line


if __name__ == "__main__":
    from megatron_lwz.cli import common

    asked = importlib.import_module(f"megatron_lwz.cli.{sys.argv[1]}")
    for argv in json.loads(sys.argv[2]):
        print(common.run(asked.main, argv))
