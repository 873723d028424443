"""The tool as a user runs it, with a real HTTP server as its judge."""

import json
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from megatron_lwz.cli import common
from megatron_lwz.data.prompts import read_prompts
from tests.support.scripted_server import KEY, Scripted, serving
from tests.support.waiting import PATIENCE, wait_for

TOOL = Path(__file__).resolve().parents[3] / "tools" / "prepare_prompts.py"
TOPICS = ["bees", "wasps", "ants", "moths", "flies", "beetles", "spiders", "crickets", "hornets", "gnats"]
ENGLISH = [f"Tell a long and moving story about {topic} and the people who live with them." for topic in TOPICS]
CHINESE = [f"请写一篇关于{topic}的长篇故事" for topic in ("春天", "大海", "高山", "草原")]


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(TOOL))["main"]


@pytest.fixture(autouse=True)
def judge_key(monkeypatch):
    monkeypatch.setenv("LWZ_JUDGE_KEY", KEY)


def inputs(folder, texts=(*ENGLISH, *CHINESE)):
    path = folder / "requests.jsonl"
    rows = [
        {"conversation": [{"role": "user", "content": text}], "conversation_id": str(n)} for n, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def arguments(folder, server=None, *more):
    judge = (
        [f"judge.url={server.url}", "judge.model=m", "judge.backoff=0.01", "judge.retries=1"]
        if server
        else ["--rules-only"]
    )
    return ["--input", str(inputs(folder)), "--output", str(folder / "out" / "prompts.jsonl"), *judge, *more]


def results(folder):
    rows = [json.loads(line) for line in (folder / "out" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    return rows, json.loads((folder / "out" / "prompts.summary.json").read_text(encoding="utf-8"))


def verdict(prompt, _):
    keep = "bees" not in prompt and "春天" not in prompt
    return f'Sure: {{"reason": "r", "keep": {str(keep).lower()}, "range": [1000, 2000]}}'


def test_judged_in_both_languages_with_provenance_and_a_table(tool, tmp_path, capsys):
    server = Scripted(verdict, delay=0.02)
    with serving(server):
        assert common.run(tool, arguments(tmp_path, server)) == 0
    rows, summary = results(tmp_path)
    assert len(read_prompts(tmp_path / "out" / "prompts.jsonl", maximum_length=16_000)) == len(rows) == 12
    assert [row["prompt"] for row in rows] == [*ENGLISH[1:], *CHINESE[1:]], "the input's order"
    assert rows[0]["provenance"]["judge"] == "scripted-1/lwz-length-en-1"
    assert rows[-1]["provenance"]["judge"] == "scripted-1/lwz-length-zh-1"
    assert rows[0]["source"] == {"file": "requests.jsonl", "id": "1"}
    assert server.most > 1, "asked in parallel"
    assert any(body["messages"][0]["content"].startswith("你") for body in server.bodies)
    assert summary["counts"]["dropped: the judge says it needs no long reply"] == 2
    assert summary["judge"]["counters"]["requests"] == 14 and KEY not in json.dumps(summary)
    shown = capsys.readouterr().out
    assert "dropped: the judge says it needs no long reply" in shown and "kept: zh, range from the judge" in shown


def test_the_same_run_again_asks_nothing_and_writes_the_same(tool, tmp_path):
    server = Scripted(verdict)
    with serving(server):
        tool(arguments(tmp_path, server))
        first = (tmp_path / "out" / "prompts.jsonl").read_bytes()
        tool(arguments(tmp_path, server))
    assert len(server.bodies) == 14 and (tmp_path / "out" / "prompts.jsonl").read_bytes() == first


def test_many_questions_are_asked_in_chunks(tool, tmp_path, monkeypatch):
    monkeypatch.setitem(tool.__globals__, "CHUNK", 4)
    server = Scripted(verdict)
    with serving(server):
        tool(arguments(tmp_path, server))
    rows, summary = results(tmp_path)
    assert [row["prompt"] for row in rows] == [*ENGLISH[1:], *CHINESE[1:]] and len(server.bodies) == 14
    assert summary["judge"]["counters"]["answered"] == 14


def test_questions_without_a_verdict_are_counted_and_asked_again_next_time(tool, tmp_path, capsys):
    failing = {"about ants", "大海"}

    def partly(prompt, number):
        return (
            web.Response(status=400, text="no") if any(word in prompt for word in failing) else verdict(prompt, number)
        )

    server = Scripted(partly)
    with serving(server):
        assert common.run(tool, arguments(tmp_path, server)) == 0
        assert "2 requests got no verdict" in " ".join(capsys.readouterr().err.split())
        rows, summary = results(tmp_path)
        assert len(rows) == 10 and summary["counts"]["dropped: the judge gave no verdict"] == 2
        failing.clear()
        asked = len(server.bodies)
        tool(arguments(tmp_path, server))
    assert len(server.bodies) == asked + 2 and len(results(tmp_path)[0]) == 12


def test_hostile_and_broken_replies_cost_their_row_only(tool, tmp_path):
    replies = [
        "{" * 500,
        "__import__('os').abort()",
        '{"keep": true, "range": [5000, 100]}',
        '{"keep": true, "range": [0, 0]}',
    ]

    def answer(prompt, number):
        found = [place for place, topic in enumerate(TOPICS[:4]) if f"about {topic}" in prompt]
        return replies[found[0]] if found else '{"keep": true, "range": [950, 12000]}'

    server = Scripted(answer)
    with serving(server):
        tool(arguments(tmp_path, server, "judge.malformed_retries=0"))
    rows, summary = results(tmp_path)
    assert len(rows) == 10 and rows[0]["length"] == {"lower": 900, "upper": 12000}
    counts = summary["counts"]
    assert counts["dropped: the judge gave no verdict"] == 2
    assert counts["dropped: judge: bounds below 0 or in the wrong order"] == 1
    assert counts["dropped: judge: [0, 0]: impossible or oversized"] == 1
    assert counts["note: judge range rounded"] == counts["note: judge range wider than 3000"] == 10


def test_a_killed_run_goes_on_and_pays_for_no_reply_twice(tool, tmp_path):
    server = Scripted(verdict, delay=0.3)
    with serving(server):
        line = [sys.executable, str(TOOL), *arguments(tmp_path, server, "judge.concurrency=2")]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for(lambda: len(server.bodies) >= 5, seconds=120, process=process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
        assert 5 <= len(server.bodies) < 14 and not (tmp_path / "out" / "prompts.jsonl").exists()
        under_way = 2
        server.delay = 0.0
        tool(arguments(tmp_path, server))
        assert len(server.bodies) <= 14 + under_way
    assert len(results(tmp_path)[0]) == 12


def test_rules_only_needs_no_judge(tool, tmp_path):
    path = inputs(tmp_path, ["Write a 2000-word essay on the sea.", "写一篇不少于三千字的报告，关于城市。", *ENGLISH])
    tool(["--input", str(path), "--output", str(tmp_path / "out" / "prompts.jsonl"), "--rules-only"])
    rows, summary = results(tmp_path)
    assert [row["length"] for row in rows] == [{"lower": 1800, "upper": 2200}, {"lower": 3000, "upper": 3300}]
    assert summary["judge"] is None and summary["counts"]["dropped: no explicit length"] == 10


def test_the_token_budget_is_the_configs(tool, tmp_path):
    path = inputs(tmp_path, ["Write a 2000-word essay on the sea."])
    line = ["--input", str(path), "--output", str(tmp_path / "out" / "prompts.jsonl"), "--rules-only"]
    tool([*line, "rollout.max_new_tokens=4000"])
    assert results(tmp_path)[1]["counts"]["dropped: longer than the token budget holds beside the thinking"] == 1
    tool([*line, "rollout.max_new_tokens=4000", "--thinking-tokens", "1000"])
    assert len(results(tmp_path)[0]) == 1


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--input", "/none.jsonl"], "/none.jsonl: no such file"),
        ([], "judge.url"),
        (["judge.url=http://127.0.0.1:9", "judge.model=m", "judge.retries=0"], "http://127.0.0.1:9"),
        (["--rules-only", "--column", "ask"], "no column 'ask'; present are: conversation, conversation_id"),
        (["--rules-only", "--step", "0"], "--step"),
        (["--rules-only", "--limit", "-1"], "--limit: -1: must be at least 1"),
        (["--rules-only", "--tokens-per-word", "nan"], "--tokens-per-word: nan: must be a finite number above 0"),
        (["--rules-only", "--tokens-per-word", "many"], "--tokens-per-word: 'many' is no number"),
        (["--rules-only", "--tokens-per-character", "0"], "--tokens-per-character: 0: must be a finite number above 0"),
        (["--rules-only", "--copy-threshold", "7"], "--copy-threshold: 7: must be above 0 and at most 1"),
        (["--rules-only", "--copy-threshold", "nan"], "--copy-threshold: nan: must be above 0 and at most 1"),
        (["--rules-only", "--thinking-tokens=-99999"], "--thinking-tokens: -99999: must be at least 0"),
        (["--rules-only", "--shortest-answer=-5"], "--shortest-answer: -5: must be at least 0"),
        (["--rules-only", "--shortest-request=-5"], "--shortest-request: -5: must be at least 0"),
        (["--rules-only", "--output", "."], "--output .: is a folder, but a file will be written"),
        (["judge.urll=x"], "url"),
    ],
)
def test_mistakes_are_one_line(tool, tmp_path, capsys, more, part):
    line = ["--input", str(inputs(tmp_path)), "--output", str(tmp_path / "p.jsonl"), *more]
    assert common.run(tool, line) == 2
    error = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(error) == 1 and part in error[0]
    assert not (tmp_path / "p.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("p.jsonl", ["--rules-only"]),
        ("p.summary.json", ["--rules-only"]),
        ("p.jsonl.part", ["--rules-only"]),
        ("p.judge.sqlite", ["judge.url=http://127.0.0.1:9", "judge.model=m"]),
        ("mine.jsonl", ["judge.url=http://127.0.0.1:9", "judge.model=m", "judge.cache={folder}/mine.jsonl"]),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_an_input_is_not_overwritten(tool, tmp_path, capsys, name, more, linked):
    path = inputs(tmp_path).rename(tmp_path / ("other.jsonl" if linked else name))
    if linked:
        (tmp_path / name).symlink_to(path)
    before, text = sorted(tmp_path.iterdir()), path.read_bytes()
    line = [
        "--input",
        str(path),
        "--output",
        str(tmp_path / "p.jsonl"),
        *(word.format(folder=tmp_path) for word in more),
    ]
    assert common.run(tool, line) == 2
    error = capsys.readouterr().err
    assert f"{name}: is one of the inputs" in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before and path.read_bytes() == text
