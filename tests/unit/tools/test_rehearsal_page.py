"""The page of a rehearsal: a part that was not run again stays as it was."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

from rehearsal_page import CARD, PARTS, examples, layouts, merge, result

from megatron_lwz.rehearsal.case import Report, WaitRow
from megatron_lwz.units import MIB

ORDER = [part.heading for part in PARTS.values()]


def report(**values) -> Report:
    return Report(**{"name": "grpo one GPU", "parameters": 1000, "micro_batches": 2, **values})


def test_a_part_that_is_made_again_replaces_its_own_section_only():
    first = merge("", {ORDER[0]: "old\n\n### Places\n\nrows"}, ORDER, "# Title\n", "## Limits\n\nnone\n")
    assert first.index("# Title") < first.index(f"## {ORDER[0]}") < first.index("## Limits")
    assert f"- {ORDER[1]}" in first and f"- {ORDER[2]}" in first
    second = merge(first, {ORDER[2]: "engine"}, ORDER, "# Title\n", "## Limits\n\nnone\n")
    assert "old\n\n### Places\n\nrows" in second and f"## {ORDER[2]}\n\nengine" in second
    assert f"- {ORDER[1]}" in second and f"- {ORDER[2]}" not in second
    assert second.count("## Limits") == 1
    assert merge(second, {}, ORDER, "# Title\n", "## Limits\n\nnone\n") == second


def test_a_rank_that_does_not_fit_or_waits_too_often_is_red():
    assert result(report()) == "passed"
    assert result(report(error="a host tensor")) == "a host tensor"
    assert result(report(peaks={"step": CARD + 1}, peak=CARD + 1)).startswith("does not fit: 76,294 of 76,294 MiB")
    waits = WaitRow("step", "item", "clip_grads.py:norm", 1, 387)
    assert result(report(waits=(waits,))) == "387 waits in a step besides those of its packs, at most 12"
    assert "**387 waits in a step" in layouts([report(waits=(waits,))])


def test_a_save_that_adds_too_much_is_red():
    added = {"load": (0, MIB), "save": (0, 3 * MIB), "save without a copy": (0, MIB)}
    saved = report(notes={"shard": 2 * MIB, "written": 2 * MIB, "added": added})
    row = next(line for line in examples([saved]).splitlines() if line.startswith("| grpo one GPU"))
    assert "| 0.0, 3.0 |" in row and "| 1.50 |" in row and "**saving or loading adds 1.50 times" in row
