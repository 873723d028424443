"""The load tool runs, and every token that it counts is in the journal."""

from __future__ import annotations

import json
import runpy
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "bench_rollout.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=timeout)


def test_figures_of_a_short_run(tmp_path):
    file = tmp_path / "figures.json"
    sizes = ["--streams", "8", "--group", "4", "--median", "60", "--cap", "200", "--rate", "400", "--seconds", "1"]
    done = run(*sizes, "--json", str(file), "--folder", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["rollouts"] > 0 and figures["tokens"] > 0
    assert 0 <= figures["lag_p50"] <= figures["lag_p99"] < 30
    with sqlite3.connect(tmp_path / "kept" / "journal.sqlite") as journal:
        (size,) = journal.execute("SELECT sum(length(tokens)) / 4 FROM deltas").fetchone()
    assert size >= figures["tokens"]


def test_every_mode_trains_the_same_data(tmp_path):
    file, page = tmp_path / "figures.json", tmp_path / "page.md"
    page.write_text("# Page\n\n## Alone\n\nkept\n")
    sizes = ["--streams", "8", "--group", "4", "--median", "200", "--cap", "800", "--delta", "32", "--rate", "2000"]
    done = run("--asynchrony", *sizes, "--steps", "3", "--json", str(file), "--markdown", str(page))
    assert done.returncode == 0, done.stderr
    modes = json.loads(file.read_text())
    assert [mode["mode"] for mode in modes] == ["synchronous", "k = 1", "k = 2", "k = 2, over-sampling 1"]
    assert len({mode["tokens"] for mode in modes}) == 1
    assert all(mode["gap_at_end"] == 0 and 0 < mode["engine_utilisation"] <= 1 for mode in modes)
    assert [mode["largest_gap"] for mode in modes[:3]] == [0, 0, 0], "in order of admission nothing is overtaken"
    text = page.read_text()
    assert text.startswith("# Page\n\n## Alone\n\nkept\n\n## Synchronous") and "| k = 2, over-sampling 1 |" in text


@pytest.mark.long
@pytest.mark.parametrize("controller", ["thread", "process"])
def test_a_training_loop_is_measured_beside_the_load_and_without_it(controller, tmp_path):
    file = tmp_path / "figures.json"
    sizes = ["--streams", "8", "--group", "4", "--median", "60", "--cap", "200", "--rate", "400", "--seconds", "1"]
    done = run("--beside", "--controller", controller, *sizes, "--json", str(file))
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["training_slowdown"].keys() == {"small kernels", "large kernels"} and figures["rollouts"] > 0
    assert all(slower > -0.5 and error > 0 for slower, error in figures["training_slowdown"].values())
    assert 0.5 < figures["tokens_per_second"] / figures["offered"] < 1.5, "over the time in which the engine wrote"


def test_a_real_engine_needs_its_tokenizer(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setattr(sys, "argv", ["bench_rollout.py", "--url", "http://127.0.0.1:1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "bench_rollout.py"))["main"]()
    assert ended.value.code == 2 and "--tokenizer" in capsys.readouterr().err


@pytest.mark.long
def test_fifty_thousand_tokens_a_second_with_flat_memory_over_ten_minutes(tmp_path):
    file = tmp_path / "figures.json"
    done = run("--streams", "256", "--median", "1500", "--seconds", "600", "--json", str(file), timeout=900)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["memory_growth_mib"] < 64
    assert figures["tokens_per_second"] >= 50_000, figures  # on two cores that do nothing else
