"""The page of a reward model's run: what is not of our making in its folder is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_lwz.config import save_config, validate
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.preferences import ScoredPair, summarize_pairs
from megatron_lwz.report.reward_model import build_reward_report
from megatron_lwz.run_paths import RunPaths

PAIRS = [ScoredPair(str(n), "human", "s", str(n), "en", n + 0.5, 1.0, 10, 9, 12, 11) for n in range(4)]


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    """A run folder with held-out pairs, its files with byte order marks."""
    paths = RunPaths(tmp_path)
    save_config(validate({}), paths.config)
    paths.held_out_summary.write_text("\ufeff" + json.dumps(summarize_pairs(PAIRS)), encoding="utf-8")
    rows = [json.dumps({"chosen": pair.chosen, "rejected": pair.rejected}) for pair in PAIRS]
    paths.held_out.write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    return paths


def test_the_page_shows_the_held_out_pairs(run: RunPaths) -> None:
    page = build_reward_report(run.root).read_text(encoding="utf-8")
    assert "<td>all</td><td>0.750</td>" in page and "Calibration" in page


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b"{}", b'{"by_kind": 3}', b'{"by_kind": {"a": {"v": 1}}}', b"\xff", b'{"a": ' + b"[" * 100_000],
)
def test_a_summary_that_is_none_is_said(run: RunPaths, data: bytes) -> None:
    run.held_out_summary.write_bytes(data)
    with pytest.raises(DataError, match=run.held_out_summary.name) as caught:
        build_reward_report(run.root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", [b"{}", b'{"chosen": 1, "rejected": "low"}', b'{"chosen": null, "rejected": 1}', b"[1]"]
)
def test_a_row_without_scores_is_named(run: RunPaths, line: bytes) -> None:
    run.held_out.write_bytes(run.held_out.read_bytes() + b"\n" + line)
    with pytest.raises(DataError, match=rf"{run.held_out.name}, line 5: "):
        build_reward_report(run.root)
