"""`lwz evaluate curve` as its user calls it: without a judge, with one, killed and run again, and on a public runs file."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.evaluate_runs import check_page, judged_by, kill_when, lwz, mistake, run
from tests.support.files import write_jsonl
from tests.support.longform import write_data, write_runs
from tests.support.scripted_server import KEY, Scripted, serving

TEXTS = 12
MARKS = {"Coherent": 18, "Purple Prose": 2, "Forced Poetry or Metaphor": 2}


@pytest.fixture
def argv(tmp_path) -> list[str]:
    def text(n: int) -> str:
        fresh = "\n\n".join(f"w{n} x{n}y{i} " + " ".join(f"u{n}v{i}q{k}" for k in range(18)) + "." for i in range(6))
        return fresh + "\n\n" + "\n\n".join(["the same line comes back again and again and again to the end."] * 8)

    rows = [{"id": n, "prompt": f"Task {n}", "response": text(n)} for n in range(TEXTS)]
    responses = write_jsonl(tmp_path / "r.jsonl", rows)
    return ["curve", str(responses), "--output", str(tmp_path / "out"), "--parts", "4"]


def result(tmp_path):
    return json.loads((tmp_path / "out" / "curve.json").read_text())


def answer(prompt: str, _: int) -> str:
    mark = 3 if "the same line" in prompt else 8
    return json.dumps({"reason": "…", "Substance": mark, "Coherence": mark, "Language": mark, "Reading": mark})


def test_without_a_judge_repetition_shows_where_it_begins(argv, capsys, tmp_path):
    assert lwz(*argv) == 0
    out, err = capsys.readouterr()
    assert "no quality" in out and "no slop score" in out and err == ""
    found = result(tmp_path)
    assert found["decays"]["repeated"]["part"] == 3 == found["decays"]["near_duplicates"]["part"]
    assert "quality" not in found["curves"] and found["short"] == 0 and found["cut"] == "4 parts"
    assert "repeated" in json.loads((tmp_path / "out" / "curve_rows.jsonl").read_text().splitlines()[0])["parts"][0]
    check_page(tmp_path / "out" / "curve.html")


def test_killed_and_run_again_no_reply_is_paid_twice(argv, tmp_path):
    server = Scripted(answer, delay=0.05)
    with serving(server):
        judged = [*argv, *judged_by(server, concurrency=2)]
        kill_when(judged, lambda: len(server.bodies) >= 20)
        run(judged)
    assert len(server.bodies) <= 4 * TEXTS + 2, "only what was under way at the kill"
    found = result(tmp_path)
    assert found["decays"]["quality"]["part"] == 3 and found["unjudged"] == 0
    assert [e["value"] for e in found["curves"]["quality"]][::3] == [8, 3]
    assert KEY not in json.dumps(found) and found["judge"]["wording"] == "ours, 1 to 10"


def test_a_public_runs_file_brings_chapters_and_marks(capsys, tmp_path):
    data = write_data(tmp_path / "copy")
    stories = {str(n): [f"She whispered {n} {c} and so on" for c in range(4)] for n in range(TEXTS)}
    marks = {prompt: [MARKS | {"Coherent": 18 - 4 * c} for c in range(4)] for prompt in stories}
    runs = write_runs(tmp_path / "longform_bench_runs.json", stories, marks)
    argv = ["curve", str(runs), "--output", str(tmp_path / "out")]
    assert lwz(*argv) == 0
    assert "weights are in a copy of the benchmark" in capsys.readouterr().err
    assert lwz(*argv, "--longform", data) == 0
    found = result(tmp_path)
    assert found["judge"]["model"] == "judge-1" and found["cut"] == "chapters"
    assert found["decays"]["quality"]["part"] == 2 == found["decays"]["Coherent"]["part"]
    assert found["decays"]["Purple Prose"]["part"] is None and found["curves"]["slop"][0]["value"] > 100
    server = Scripted(lambda prompt, _: "[Scores]\nCoherent: 9\nPurple Prose: 9\nForced Poetry or Metaphor: 9")
    with serving(server):
        run([*argv, "--longform", data, *judged_by(server, concurrency=4)])
    assert result(tmp_path)["metrics"]["Coherent"]["value"] == 9 and server.bodies[0]["temperature"] == 0
    assert len(server.bodies) == 4 * TEXTS and server.bodies[0]["max_tokens"] == 16000


def test_mistakes_are_one_line(argv, capsys, tmp_path):
    plain = write_jsonl(tmp_path / "p.jsonl", [{"id": 1, "response": "word " * 300}])
    runs = write_runs(tmp_path / "runs.json", {"1": ["one", "two"]})
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": 1, "response": "a"}\n{"id": 2}\n')
    output, judge = ("--output", str(tmp_path / "o")), ("judge.url=http://127.0.0.1:9", "judge.model=m")
    for given, said in (
        (("curve", broken, *output), f"{broken}, line 2: 'response' must be a text"),
        (("curve", plain, *output, *judge), "rows without a prompt"),
        (("curve", plain, *output, "judge.urls=x"), "unknown key"),
        (("curve", plain, *output, "--run", "x"), "--run chooses a run"),
        (("curve", plain, *output, "--parts", "200"), "none of its 1 texts has 25 words"),
        (("curve", plain, *output, "--parts", "4", "--every", "9"), "--every"),
        (("curve", runs, *output, *judge), "give --longform DIR"),
        (("curve", runs, *output, "--run", "y"), "no run 'y' here: there are x_m"),
        (("curve", plain, *output, "--longform", tmp_path), "no longform_creative"),
        (("curve", "/nowhere", *output), "/nowhere"),
    ):
        assert said in mistake(capsys, *given), given
