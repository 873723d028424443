"""`lwz evaluate text` as its user calls it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.end_to_end.evaluate_runs import check_page, lwz, mistake

PUBLIC = Path(__file__).parents[1] / "unit" / "evaluation" / "data" / "longbench_write.json"


def test_results_table_and_page(tmp_path, capsys):
    public = json.loads(PUBLIC.read_text(encoding="utf-8"))
    responses = tmp_path / "model <a>.jsonl"
    responses.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in public["rows"]))
    assert lwz("text", responses, "--output", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert err == "" and "length score S_l" in out and "model <a>" in out
    found = json.loads((tmp_path / "out" / "text.json").read_text(encoding="utf-8"))
    assert found["metrics"]["s_l"]["value"] == public["mean"] and found["name"] == "model <a>"
    assert len((tmp_path / "out" / "text_rows.jsonl").read_text().splitlines()) == len(public["rows"])
    check_page(tmp_path / "out" / "text.html")
    assert "model &lt;a&gt;" in (tmp_path / "out" / "text.html").read_text()


def test_mistakes_are_one_line(tmp_path, capsys):
    broken = tmp_path / "r.jsonl"
    broken.write_text('{"id": 1}\n')
    for argv, said in (
        (("nothing",), "lwz evaluate has no 'nothing'"),
        (("text", broken, "--output", tmp_path / "o"), f"{broken}, line 1: 'response' must be a text"),
        (("text", "/nowhere", "--output", tmp_path / "o"), "/nowhere"),
        (("text", broken), "--output"),
        (("text", broken, "--output", broken / "x", "--prompts", "/nowhere"), "/nowhere"),
    ):
        assert said in mistake(capsys, *argv)
