"""A checkpoint written under one release of Megatron-Core goes on under the other: `make test-stacks` names both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.stages import variables

pytestmark = pytest.mark.stacks


@pytest.fixture(scope="module")
def pythons() -> dict[str, str]:
    return {"here": sys.executable, "there": os.environ["OTHER_STACK"]}


@pytest.fixture(scope="module")
def written(pythons: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Stack → the folder with its checkpoints, and how it went on."""
    folders = {stack: tmp_path_factory.mktemp(stack) for stack in pythons}
    return {stack: (folders[stack], call(python, "write", folders[stack])) for stack, python in pythons.items()}


def call(python: str, action: str, folder: Path) -> dict[str, Any]:
    command = [python, "-m", "tests.stacks.exchange", action, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=variables(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("source", "target"), [("here", "there"), ("there", "here")])
def test_a_run_goes_on_under_the_other_release_as_under_its_own(
    source: str, target: str, pythons: dict[str, str], written: dict[str, tuple[Path, Any]]
) -> None:
    folder, own = written[source]
    other = call(pythons[target], "read", folder)
    assert other["release"] != own["release"]
    for precision in ("fp32", "bf16"):
        for one, two in zip(own[precision], other[precision], strict=True):
            assert two == pytest.approx(one, rel=1e-6), precision
