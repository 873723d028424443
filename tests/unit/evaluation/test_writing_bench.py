from __future__ import annotations

import asyncio
import json

import pytest

from megatron_lwz.config.sections import JudgeSection
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import writing_bench_files as files
from megatron_lwz.evaluation.responses import Response
from megatron_lwz.evaluation.writing_bench import aggregate, judge_responses
from megatron_lwz.rewards.judge_client import Judge
from tests.support.files import write_jsonl
from tests.support.scripted_server import KEY, Scripted, serving
from tests.support.writing_bench import PUBLIC, write_benchmark


@pytest.mark.parametrize("key", ["checklist", "criteria"])
def test_aggregation_equals_the_public_script(tmp_path, key):
    benchmark = files.read_benchmark(write_benchmark(tmp_path, key))
    assert benchmark.era == {"checklist": "2025-04", "criteria": "2025-03"}[key]
    scores, repeated = files.read_scores(write_jsonl(tmp_path / "m.jsonl", PUBLIC["scores"]), benchmark)
    found = aggregate(benchmark, scores)
    expected = dict(PUBLIC["expected"])
    assert expected.pop("Count") == len(scores) and repeated == 0
    assert {name: value.value for name, value in found.items()} == pytest.approx(expected, rel=1e-12)
    assert all(value.low <= value.value <= value.high for value in found.values())


def test_a_row_that_the_public_resume_scored_twice_counts_once(tmp_path):
    benchmark = files.read_benchmark(write_benchmark(tmp_path))
    rows = [*PUBLIC["scores"][:-1], {**PUBLIC["scores"][-1], "scores": {"Tone": []}}, PUBLIC["scores"][-1]]
    rows[-2] = {**rows[-1], "scores": {name: [{"score": 1, "reason": ""}] for name in rows[-1]["scores"]}}
    scores, repeated = files.read_scores(write_jsonl(tmp_path / "m.jsonl", rows), benchmark)
    assert repeated == 1
    assert aggregate(benchmark, scores)["Overall"].value == pytest.approx(PUBLIC["expected"]["Overall"])


def test_the_eras_are_never_mixed(tmp_path):
    new, old = write_benchmark(tmp_path / "new"), write_benchmark(tmp_path / "old", "criteria")
    subset = "benchmark_query/requirement/style/style_subset.jsonl"
    (new / subset).write_text((old / subset).read_text())
    with pytest.raises(DataError, match=r"style_subset\.jsonl, line 1: query \d+ is not the one of the benchmark"):
        files.read_benchmark(new)
    mixed = new / "benchmark_query" / "benchmark_all.jsonl"
    mixed.write_text(mixed.read_text() + (old / "benchmark_query" / "benchmark_all.jsonl").read_text())
    with pytest.raises(DataError, match="line 31: this query is of 2025-03, those before are of 2025-04"):
        files.read_benchmark(mixed)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"index": 1, "scores": {"Other": [{"score": 1}]}}, "criterion 'Other' is not in the benchmark of 2025-04"),
        ({"index": 99, "scores": {}}, "index 99 is not in"),
        ({"index": 1, "scores": {}}, "query 1 has no scores for"),
        ({"index": 1, "scores": {"NAME": 3}}, "must hold scores from 1 to 10"),
        ({"index": 1, "scores": {"NAME": {"score": 3}}}, "must hold scores from 1 to 10"),
        ({"index": 1, "scores": {"NAME": [{"score": True}]}}, "must hold scores from 1 to 10"),
        ({"index": 1, "scores": {"NAME": [{"score": float("nan")}]}}, "must hold scores from 1 to 10"),
        ({"index": 1, "scores": {"NAME": []}}, "must hold scores from 1 to 10"),
        ({"index": 1, "scores": {"NAME": [{"score": 11}]}}, "must hold scores from 1 to 10"),
        ({"index": "1", "scores": {}}, "a row of scores reads"),
        ({"response": "x"}, "a row of scores reads"),
    ],
)
def test_scores_of_something_else_are_refused(tmp_path, row, said):
    benchmark = files.read_benchmark(write_benchmark(tmp_path))
    name = PUBLIC["queries"][0]["checklist"][0]["name"]
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(row).replace("NAME", name) + "\n")
    with pytest.raises(DataError, match=f"line 1: .*{said}"):
        files.read_scores(path, benchmark)


def test_what_is_no_benchmark_is_said(tmp_path):
    with pytest.raises(DataError, match=r"no benchmark_all\.jsonl here"):
        files.read_benchmark(tmp_path)
    path = write_jsonl(tmp_path / "benchmark_all.jsonl", [{"index": 1, "query": "q"}])
    with pytest.raises(DataError, match="line 1: no criteria"):
        files.read_benchmark(path)
    for change in ({"checklist": [{}]}, {"checklist": 3}, {"checklist": [{"name": 1}]}, {"domain1": ["a"]}):
        query = {"index": 1, "query": "q", "checklist": [{"name": "Tone"}], **change}
        with pytest.raises(DataError, match="line 1: not a query of WritingBench"):
            files.read_benchmark(write_jsonl(path, [query]))


def test_a_query_of_a_subset_needs_scores_for_its_criteria(tmp_path):
    benchmark = files.read_benchmark(write_benchmark(tmp_path))
    index, names = next((i, n) for i, n in benchmark.subsets["style"].criteria.items() if n)
    (row,) = [row for row in PUBLIC["scores"] if row["index"] == index][:1]
    row = {**row, "scores": {name: found for name, found in row["scores"].items() if name != names[0]}}
    with pytest.raises(DataError, match=f"line 1: query {index} has no scores for '{names[0]}'"):
        files.read_scores(write_jsonl(tmp_path / "m.jsonl", [row]), benchmark)


def test_every_criterion_is_judged_and_the_scores_read_back(tmp_path):
    benchmark = files.read_benchmark(write_benchmark(tmp_path))
    responses = [Response(str(index), f"Answer {index}") for index in benchmark.queries]
    failing = ("Query 3\n", "name: Tone")

    def answer(prompt: str, number: int) -> str:
        if all(part in prompt for part in failing):
            return "no verdict"
        return json.dumps({"reason": "it's fine", "score": len(prompt) % 10 + 1})

    server = Scripted(answer)

    async def main():
        async with Judge(JudgeSection(url=server.url, model="j", malformed_retries=0), KEY) as judge:
            return await judge_responses(benchmark, responses, judge, evaluations=2)

    with serving(server):
        judged = asyncio.run(main())
    has_tone = "Tone" in benchmark.queries[3].criteria
    assert judged.incomplete == ([3] if has_tone else []) and len(judged.scores) == 30 - has_tone
    assert len(server.bodies) == 30 * 5 * 2
    path = tmp_path / "ours.jsonl"
    path.write_text("".join(files.scores_as_row(index, scores) + "\n" for index, scores in judged.scores.items()))
    again, _ = files.read_scores(path, benchmark)
    assert again == judged.scores
    evaluation = next(iter(again[1].values()))[1]
    assert evaluation["judge"] == "scripted-1/lwz-criterion-1" and evaluation["reason"] == "it's fine"


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("claude-sonnet-4-5-20250929", "2025-11-27"),
        ("anthropic/claude-sonnet-4.5", "2025-11-27"),
        ("claude-sonnet-4-20250514", "2025-09-05"),
        ("claude-sonnet-4@20250514", "2025-09-05"),
        ("Claude-3.7-Sonnet", "2025-04-29"),
        ("us.anthropic.claude-3-7-sonnet-20250219-v1:0", "2025-04-29"),
        ("claude-sonnet-4-6", None),
        ("claude-opus-4", None),
        ("AQuarterMile/WritingBench-Critic-Model-Qwen-7B", None),
    ],
)
def test_the_leaderboards_judges_are_known_by_their_names(name, day):
    assert files.leaderboard_since(name) == day


def test_scores_name_their_judges():
    ours = {1: {"a": [{"score": 3, "reason": "", "judge": "org/m/writing-bench@12"}]}, 2: {"a": [{"score": 3}]}}
    assert files.judges_of(ours) == ["org/m"] and files.judges_of({2: ours[2]}) == []
