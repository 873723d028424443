"""Runs tests of Triton kernels through Triton's interpreter.

The choice is made when Triton is imported, for all kernels of a process (megatron-core has some, too), so that these
tests get a process of their own. Their file's name keeps pytest from collecting it in the usual one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_interpreted(path: str) -> None:
    """Runs the tests of a file (relative to the repository) with TRITON_INTERPRET=1; raises when one fails."""
    command = [sys.executable, "-m", "pytest", "-q", path]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
