import json

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import hello_bench_files as files
from megatron_lwz.evaluation.hello_bench import score, summarise
from megatron_lwz.evaluation.judge_prompts import (
    checklist_question,
    read_checklist_scores,
    read_hello_bench_prompt,
)
from megatron_lwz.evaluation.responses import Response
from megatron_lwz.evaluation.statistics import mean_of_groups
from tests.support.hello_bench import WEIGHTS, write_benchmark


@pytest.fixture
def copy(tmp_path):
    return write_benchmark(tmp_path / "HelloBench")


def test_a_score_is_the_public_one(copy):
    items = files.read_benchmark(copy)
    weights = files.read_weights(copy, items)
    item = items["chat_000"]
    # hellobench.py of OpenCompass at 3ce9b0a: (weights · scores − 75) · 4, weights that sum to 100
    assert score(item, [1, 0.5, 0.75], weights) == pytest.approx((20 * 1 + 50 * 0.5 + 30 * 0.75 - 75) * 4)
    assert score(item, [1, 1, 1], weights) == pytest.approx(100) and score(item, [0, 0, 0], None) == -300
    assert items["heuristic_text_generation_001"].checklist == ["Is story_writing 0 met?", "Is story_writing 1 met?"]


def test_overall_is_the_mean_of_the_tasks(copy):
    items = files.read_benchmark(copy)
    responses = [Response(name, "word " * 10) for name in items]
    given = {name: [1.0] * len(item.checklist) for name, item in items.items() if item.task == "chat"}
    given |= {"heuristic_text_generation_000": [0.75, 0.75]}
    found = summarise(items, responses, given, None)
    values = [found.metrics[name].value for name in ("chat", "heuristic_text_generation", "Overall")]
    assert values == pytest.approx([100, 0, 50]) and found.metrics["Overall"].count == 7 and found.unjudged == 5
    assert found.metrics["Category_rewrite"].count == 3 and found.metrics["length"].value == 10
    alone = summarise(items, responses, None, None)
    assert set(alone.metrics) == {"length", "near_duplicates"} and alone.unjudged == 0
    json.dumps(found.as_json(), allow_nan=False)


def test_groups_count_alike():
    found = mean_of_groups([[1.0] * 99, [0.0, 4.0], []])
    assert found.value == 1.5 and found.low < 1.5 < found.high and found.count == 101
    assert mean_of_groups([[], []]) is None


def test_the_length_constrained_version_says_how_long(copy):
    items = files.read_benchmark(copy, "2k")
    responses = [Response(name, "word " * (1999 + n % 2)) for n, name in enumerate(items)]
    found = summarise(items, responses, None, None)
    assert found.metrics["long_enough"].value == 0.5 and {item.least for item in items.values()} == {2000}
    with pytest.raises(DataError, match=r"no heuristic_text_generation_16k.jsonl here"):
        files.read_benchmark(copy, "16k")


def test_questions_and_replies_in_the_public_words_and_in_ours(copy):
    item = files.read_benchmark(copy / "data" / "main_data")["chat_001"]
    path = files.find_beside(copy / "data" / "main_data", "llm_judge.py")
    asked = checklist_question(item.instruction, "a {text}", item.checklist, read_hello_bench_prompt(path))
    assert asked.system == "You judge." and asked.user.startswith('Judge {"instruction": Write chat 1.} and')
    assert '{"response": a {text}}' in asked.user and '"checklist_id": 2' in asked.user and "3 items" in asked.user
    listed = [
        {"checklist_id": str(n), "reason": "…", "evaluation_score": v} for n, v in ((1, "0.5"), (0, 1), (2, 0.25))
    ]
    assert read_checklist_scores("```json\n" + json.dumps(listed) + "\n```", 3, public=True) == [1, 0.5, 0.25]
    assert read_checklist_scores(json.dumps(listed[:2]), 3, public=True) is None
    assert read_checklist_scores(json.dumps([{**one, "evaluation_score": 2} for one in listed]), 3, public=True) is None
    ours = checklist_question(item.instruction, "text", item.checklist)
    assert '"1": n, "2": n, "3": n' in ours.user and ours.version.startswith("lwz-")
    assert read_checklist_scores('{"reason": "", "1": 1, "2": 0.75, "3": 0}', 3, public=False) == [1, 0.75, 0]


def test_judgements_of_the_public_script_and_ours_are_read(copy, tmp_path):
    items = files.read_benchmark(copy)
    path = tmp_path / "j.jsonl"
    lines = [files.judgement_row(item, "text", [0.5] * len(item.checklist), "said") for item in items.values()]
    path.write_text("\n".join(lines))
    assert files.read_judgements([path], items)["chat_003"] == [0.5] * 3
    for broken, said in (
        ('{"id": "chat_000"}', "line 1: item 0 of the checklist of 'chat_000' has no score"),
        ('{"id": "x"}', "line 1: id 'x' is not in the benchmark"),
        (f"{lines[0]}\n{lines[0]}", "line 2: id 'chat_000' was judged already"),
        (lines[0].replace("0.5", '"good"'), "line 1: 'checklist_wise_evaluation' must hold scores"),
    ):
        path.write_text(broken)
        with pytest.raises(DataError, match=said) as raised:
            files.read_judgements([path], items)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": 3}', "line 1: not a row of HelloBench"),
        ('{"id": "a", "category": "rewrite", "instruction": "b", "checklists": "c"}', "line 1: 'checklists'"),
    ],
)
def test_a_malformed_task_names_its_line(copy, text, said):
    (copy / "data" / "main_data" / "chat.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        files.read_benchmark(copy)


def test_weights_must_fit_the_checklists(copy):
    items = files.read_benchmark(copy)
    path = copy / "weighted_scores.txt"
    for text, said in (("x = [", "not HelloBench's weights"), ("x = {'rewrite': [1]}", "needs 3 weights, got 1")):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            files.read_weights(copy, items)
    path.unlink()
    assert files.read_weights(copy, items) is None and set(WEIGHTS) == {item.category for item in items.values()}
