"""run_paths.py alone names the files of a run folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from megatron_lwz import run_paths
from megatron_lwz.run_paths import RunPaths, step_name, step_of

ROOT = Path(__file__).parents[2]
AMBIGUOUS = {
    "hf",
    "weights",
    "corpus",
    "evaluation",
    "skipped",
    "latest",
    "best",
    "config.yaml",
    "checkpoints",
    "held_out.jsonl",
    "step_outputs",
}
"""Also words of configs, journals and other folders."""


def literals(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs)
    return {node.value for node in constants if isinstance(node.value, str)}


def test_no_other_file_names_what_lies_in_a_run_folder() -> None:
    names = {path.name for path in vars(RunPaths("run")).values() if path.name != "run"} - AMBIGUOUS
    assert {"journal.sqlite", "metrics.jsonl", "attempts.jsonl", "engine.log", "report.html"} < names
    for path in [*(ROOT / "megatron_lwz").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        if path != Path(run_paths.__file__):
            found = {
                text for text in literals(path) if text in names or text.lstrip(".").startswith("step_")
            } - AMBIGUOUS
            assert not found, f"{path}: {found} stand in run_paths.py"


def test_step_names_sort_as_steps_do_and_are_read_back() -> None:
    names = [step_name(step) for step in (0, 9, 10, 12_345_678)]
    assert names == sorted(names) and [step_of(name) for name in names] == [0, 9, 10, 12_345_678]
    assert RunPaths("run").checkpoint(10) == Path("run/checkpoints/step_00000010")
    for name in ("step_", "step_x", "latest", ".step_1.tmp"):
        with pytest.raises(ValueError, match="no step"):
            step_of(name)
