"""The Triton kernels through Triton's interpreter, without a GPU: equal to their definitions.

Whether kernels are interpreted is decided for all of a process (megatron-core has some, too) when Triton is imported, so
these tests get a process of their own, one for all of them. Their files' names keep pytest from collecting them here.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.paths import ROOT

FILES = ("grpo_loss", "layers", "triton_epilogue")


def test_through_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.kernels.prepared_once"]
    command += [f"tests/kernels/interpreted_{name}.py" for name in FILES]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
