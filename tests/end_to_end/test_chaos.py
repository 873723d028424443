"""The campaign of faults, in its short form and a longer one; what it would see if a promise broke."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.chaos.evidence import lost_tokens
from tests.support.paths import ROOT


def campaign(folder: Path, *options: str, timeout: float) -> dict[str, Any]:
    line = [
        sys.executable,
        "tools/chaos.py",
        *options,
        "--folder",
        str(folder / "runs"),
        "--json",
        str(folder / "seen"),
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((folder / "seen").read_text())


def test_a_run_survives_a_few_faults_and_ends_as_if_there_had_been_none(tmp_path: Path) -> None:
    seen = campaign(tmp_path, "--short", "--seed", "3", "--steps", "4", timeout=900)
    assert seen["kills"] >= 2 and len(seen["events"]) >= 3
    assert seen["tokens_lost"] == 0 and not seen["wrong"]


@pytest.mark.long
def test_runs_survive_many_faults_on_one_rank_on_two_and_on_changing_layouts(tmp_path: Path) -> None:
    seen = campaign(tmp_path, "--faults", "80", "--seed", "4", timeout=7200)
    assert set(seen["runs"]) == {"1 rank", "2 ranks", "changing"}
    assert seen["kills"] >= 50 and seen["tokens_lost"] == 0 and not seen["wrong"]


def test_lost_and_changed_tokens_are_counted() -> None:
    before = {(0, 0): b"tok1lgp1tok2lgp2tok3lgp3", (0, 1): b"tok1lgp1"}
    assert lost_tokens(before, before | {(0, 0): before[0, 0] + b"tok4lgp4", (1, 0): b"tok1lgp1"}) == 0
    assert lost_tokens(before, {(0, 0): b"tok1lgp1tok2XXXXtok3lgp3", (0, 1): b"tok1lgp1"}) == 2
    assert lost_tokens(before, {(0, 0): before[0, 0]}) == 1
