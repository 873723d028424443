"""The benchmark tool runs, and its figures show the bound on the workspace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "figures.json"
    command = [sys.executable, str(ROOT / "tools" / "bench_kernels.py"), "--json", str(file), "--repeats", "2"]
    command += ["--shapes", "512x16x16384,2048x16x16384", "--workspace-mib", "8", "--threads", "1"]
    command += ["--ways", "plain,chunked,cpp"]  # chunked: the earlier name of torch
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return {(f["shape"], f["way"]): f for f in json.loads(file.read_text())["figures"]}


def test_workspace_stays_within_its_budget_whatever_the_length(figures):
    noise = 24  # MiB of resident memory that torch itself moves
    for tokens in (512, 2048):
        shape = f"{tokens}x16x16384"
        assert figures[shape, "plain"]["workspace_mib"] >= tokens * 16384 * 4 / 2**20
        ours = [figure for (of, way), figure in figures.items() if of == shape and way.startswith("ours")]
        assert (shape, "ours, torch, separable") in figures
        assert len(ours) >= 2 and all(figure["workspace_mib"] <= 8 + noise for figure in ours)


def test_log_probs_and_gradients_are_exact(figures):
    errors = [f[key] for f in figures.values() for key in ("error", "hidden_gradient_error") if f[key] is not None]
    assert len(errors) > len(figures) and max(errors) <= 1e-5
