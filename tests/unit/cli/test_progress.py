"""What a run shows while it goes on, in each of its forms."""

from __future__ import annotations

import io
import json
import logging
import math

import pytest
from rich.console import Console

from megatron_lwz.cli import common, progress
from megatron_lwz.cli.progress import RunProgress
from tests.support.waiting import wait_for


def test_lines_are_one_per_step_and_on_rank_zero_only(monkeypatch, capsys):
    def show() -> str:
        with RunProgress("grpo", 2) as shown:
            shown(1, {"reward": 0.25})
            shown(2, {"reward": 0.5})
        return capsys.readouterr().out

    assert show() == "grpo 1/2  reward 0.25\ngrpo 2/2  reward 0.5\n"
    monkeypatch.setenv("RANK", "1")
    assert show() == ""


@pytest.mark.parametrize("form", ["lines", "json"])
def test_a_long_step_says_what_moves(form, capsys):
    said: list[str] = []

    def has_said(*parts: str) -> bool:
        said.extend(capsys.readouterr().out.splitlines())
        return any(all(part in line for part in parts) for line in said)

    with RunProgress("grpo", 3, form, seconds=0.01) as shown:
        wait_for(lambda: has_said("begins" if form == "lines" else '"phase": ""'))
        shown(1, {"reward": 0.25})
        shown.phase("rollout")
        shown.note("rollouts 3/8")
        wait_for(lambda: has_said("rollout", "rollouts 3/8"))
        shown.phase("update")
        wait_for(lambda: has_said("update"))
    assert not has_said("update", "3/8"), "a note belongs to its phase"
    if form == "lines":
        assert "grpo 1/3  reward 0.25" in said
    else:
        rows = [json.loads(line) for line in said]
        assert {"event": "step", "stage": "grpo", "step": 1, "steps": 3, "reward": 0.25} in rows
        waiting = [row for row in rows if row["event"] == "waiting" and row["note"]]
        assert waiting[0]["phase"] == "rollout" and waiting[0]["step"] == 1 and waiting[0]["phase_seconds"] >= 0


def test_json_has_null_for_what_is_no_number(capsys):
    with RunProgress("grpo", 1, "json") as shown:
        shown(1, {"reward": math.nan})
    assert json.loads(capsys.readouterr().out)["reward"] is None


def test_the_live_screen_stands_below_the_log(monkeypatch):
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(progress, "console", lambda: terminal)
    with RunProgress("grpo", 50) as shown:
        shown(41, {"reward": 0.25})
        shown.phase("rollout")
        shown.note("rollouts 3/8")
        screen = "".join(segment.text for segment in terminal.render(shown._screen()))
    assert "41/50" in screen and "step 41  reward 0.25" in screen
    assert "step 42  rollout  0 s  rollouts 3/8" in screen
    assert "41/50" in out.getvalue()


def test_the_log_follows_the_streams_and_goes_back(monkeypatch):
    common.start_log()
    handlers = logging.getLogger("megatron_lwz").handlers
    before = [handler.stream for handler in handlers]
    monkeypatch.setattr("sys.__stdout__", before[0])
    monkeypatch.setattr("sys.__stderr__", before[1])
    others = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", others[0])
    monkeypatch.setattr("sys.stderr", others[1])
    with progress._log_follows():
        logging.getLogger("megatron_lwz").warning("above")
        assert [handler.stream for handler in handlers] == list(others)
    assert others[1].getvalue() == "WARNING: above\n" and [handler.stream for handler in handlers] == before
