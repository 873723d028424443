"""`lwz evaluate compare` over results of the other commands."""

from __future__ import annotations

import csv
import json

from tests.end_to_end.evaluate_runs import check_page, lwz, mistake
from tests.support.files import write_jsonl
from tests.support.writing_bench import PUBLIC, write_benchmark


def test_runs_side_by_side(tmp_path, capsys):
    benchmarks = {
        "checklist": write_benchmark(tmp_path / "new"),
        "criteria": write_benchmark(tmp_path / "old", "criteria"),
    }
    scores = write_jsonl(tmp_path / "scores.jsonl", PUBLIC["scores"])
    for name, text, era in (
        ("base", "word " * 50, "checklist"),
        ("think", "word " * 100, "checklist"),
        ("old", "one", "criteria"),
    ):
        rows = [{"prompt": f"Write {n}", "length": 100, "response": text} for n in range(5)]
        responses = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        assert lwz("text", responses, "--output", tmp_path / name) == 0
        assert (
            lwz("longbench-write", "--prompts", responses, "--responses", responses, "--output", tmp_path / name) == 0
        )
        assert (
            lwz("writing-bench", "--benchmark", benchmarks[era], "--scores", scores, "--output", tmp_path / name) == 0
        )
    capsys.readouterr()
    folders = [f"Base [nothink]={tmp_path / 'base'}", tmp_path / "think"]
    assert lwz("compare", *folders, "--output", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert err == "" and "Base [nothink]" in out and "100 [100, 100]" in out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    s_l = next(figure for figure in found["figures"] if figure["metric"] == "s_l" and figure["benchmark"] == "text")
    assert {name: e["value"] for name, e in s_l["runs"].items()} == {"Base [nothink]": 50.0, "think": 100.0}
    assert s_l["differences"]["think"]["low"] == 50.0
    assert "2025-03" in found["published"]["writing_bench"]
    lines = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    assert {line["run"] for line in lines} == {"Base [nothink]", "think"}
    check_page(tmp_path / "out" / "compare.html")
    assert lwz("compare", *folders, tmp_path / "old", "--output", tmp_path / "out") == 0
    assert "warning: writing_bench: judged under different conditions" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, capsys):
    for argv, said in (((tmp_path,), "no evaluation here"), ((), "[NAME=]DIR"), (("/nowhere",), "/nowhere")):
        assert said in mistake(capsys, "compare", *argv, "--output", tmp_path / "out")
