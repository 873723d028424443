import json

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import constory_files as files
from megatron_lwz.evaluation.constory import contradictions_question, find_quotation, read_errors, summarise
from megatron_lwz.evaluation.statistics import ratio
from tests.support.constory import EYES, prompts, story, write_evaluation, write_questions
from tests.support.files import write_jsonl

LOOKS = "factual_detail_appearance_mismatches"


def test_the_density_is_the_public_one(tmp_path):
    rows = [
        {"id": 0, "story": story(0, faulty=True), LOOKS: [EYES, EYES], "timeline_plot_causeless_effects": [EYES]},
        {"id": 1, "story": "word " * 200, "task_type": "generation", "world_building_core_rules_violations": "None"},
    ]
    stories, left = files.read_evaluations(write_evaluation(tmp_path / "m1.csv", rows))
    found = summarise(stories, [one.errors for one in stories])
    # metrics.py at 5a1cfa2: columns with an error / (words / 10,000), mean over stories; categories: all over all words
    assert left == 0 and found.metrics["ced"].value == pytest.approx((2 / 0.01 + 0) / 2)
    assert found.metrics["ced_factual_detail"].value == pytest.approx(1 / 0.03)
    assert found.metrics["ced_narrative_style"].value == 0 and found.metrics["errors"].value == 1.5
    assert found.metrics["quoted"].value == 1 and found.metrics["gap"].value > 0.95
    assert [e.value for e in found.positions] == [*[0] * 7, 1.5]
    assert found.metrics["ced, generation"].value == 0 and found.metrics["length"].count == 2
    json.dumps(found.as_json(), allow_nan=False)


def test_words_without_white_space_count_in_the_second_density(tmp_path):
    rows = [{"id": 0, "story": "他走进了房间。" * 100, LOOKS: [EYES]}]
    stories, _ = files.read_evaluations(write_evaluation(tmp_path / "m1.csv", rows))
    found = summarise(stories, [stories[0].errors]).metrics
    assert found["ced"].value == 10_000 and found["ced_units"].value == pytest.approx(10_000 / 600)
    assert found["quoted"].value == 0, "a quotation that does not stand in the story"


def test_without_a_judge_there_is_what_rules_find():
    text = "Anna Berg was born in 1950. " + "Word. " * 972 + "Anna Berg was born in 1960."
    found = summarise([files.Story("0", text)], None)
    assert set(found.metrics) == {"rules", "length"} and found.metrics["rules"].value > 0 and found.unjudged == 0


def test_a_story_without_every_verdict_is_left_out_and_counted():
    found = summarise([files.Story("0", "a b"), files.Story("1", "c d")], [None, {LOOKS: [EYES]}])
    assert found.unjudged == 1 and found.metrics["ced"].count == 1


def test_questions_in_the_public_words_and_in_ours(tmp_path):
    templates = files.read_templates(write_questions(tmp_path))
    asked = contradictions_question("a {{ Query }} story", "factual_detail", templates).user
    assert "Focus: **Factual & Detail Consistency Analysis**" in asked and ">>>a {{ Query }} story<<<" in asked
    ours = contradictions_question("a story", "world_building", None)
    assert '"geographical_contradictions": […]' in ours.user and ours.version == "lwz-contradictions-1"
    (tmp_path / "prompts" / "timeline_plot.md").write_text("no place for it")
    with pytest.raises(DataError, match="must stand in it"):
        files.read_templates(tmp_path)


def test_replies_are_read_and_what_they_leave_out_is_free_of_errors():
    reply = "<think>{}</think>```json\n" + json.dumps({"appearance_mismatches": [EYES, {"x": 1}], "other": 3}) + "\n```"
    found = read_errors(reply, "factual_detail")
    assert found[LOOKS] == [EYES] and found["factual_detail_quantitative_mismatches"] == []
    assert read_errors("none found", "factual_detail") is None
    durations = read_errors(json.dumps({"duration_contradictions": [EYES]}), "timeline_plot")
    assert durations["timeline_plot_duration_timeline_contradictions"] == [EYES], "the key of the public question"
    figures = summarise([files.Story("0", story(0, faulty=True))], [durations]).metrics
    assert figures["ced"].value == 100 and figures["ced_public"].value == 0, "which its script does not read"


def test_quotations_are_found_as_the_public_script_finds_them():
    text = "It was late. She looked at him for a long time and then she went away without a word."
    assert find_quotation(text, "She  looked\nat") == pytest.approx(13 / len(text))
    changed = text[13:70] + " and sang"
    assert find_quotation(text, changed) == pytest.approx(13 / len(text)), "by its first 50 characters"
    assert find_quotation(text, "He came") is find_quotation(text, "") is find_quotation(text, None) is None
    assert find_quotation(text, ["It was", "late."]) == 0


def test_public_stories_are_read_by_model(tmp_path):
    given = [dict(row, model_name=m, generated_story=f"{m} {row['id']}") for row in prompts(2) for m in ("a", "b")]
    given[2]["generated_story"] = None
    path = write_jsonl(tmp_path / "stories.jsonl", given)
    known = files.read_prompts(write_jsonl(tmp_path / "p.jsonl", prompts(2)))
    found, empty = files.read_stories(path, known, "a")
    assert [(one.id, one.text, one.kind) for one in found] == [("0", "a 0", "generation")] and empty == 1
    for model, said in ((None, "name one by --model: a, b"), ("c", "no stories of model 'c'")):
        with pytest.raises(DataError, match=said):
            files.read_stories(path, known, model)


def test_an_evaluation_is_written_as_it_is_read(tmp_path):
    stories = [files.Story("3", 'a "b",\nc', "en", "generation", "p"), files.Story("4", "d")]
    errors = {column: [] for column in files.COLUMNS} | {LOOKS: [EYES]}
    files.write_evaluations(tmp_path / "e.csv", stories, [errors, None], "judge-1")
    (found,), left = files.read_evaluations(tmp_path / "e.csv")
    assert (found.text, found.kind, found.judge, found.errors[LOOKS], left) == (
        'a "b",\nc', "generation", "judge-1", [EYES], 0,
    )  # fmt: skip


def test_rows_without_a_verdict_are_left_out_which_the_public_script_counts_as_faultless(tmp_path):
    rows = [{"id": 0, "story": "a", LOOKS: "ERROR: HTTP 500"}, {"id": 1, "story": ""}, {"id": 2, "story": "b"}]
    (found,), left = files.read_evaluations(write_evaluation(tmp_path / "m1.csv", rows))
    assert found.id == "2" and left == 2


def test_a_malformed_evaluation_is_one_line_with_its_place(tmp_path):
    path = write_evaluation(tmp_path / "m1.csv", [{"id": 0, "story": "a"}, {"id": 1, "story": "b", LOOKS: "{'a'"}])
    with pytest.raises(DataError, match=r"line 3: 'factual_detail_appearance_mismatches' holds no JSON list"):
        files.read_evaluations(path)
    with pytest.raises(DataError, match="no column 'x' here"):
        files.read_evaluations(path, "x")
    for text, said in (("id,a_story\n1,2,3\n", "line 2: has more or fewer cells"), ("", "no story"), ("\xff", "not a")):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match=said):
            files.read_evaluations(path)


def test_a_ratio_is_of_sums():
    found = ratio([1, 0, 5], [10, 10, 20])
    assert found.value == 6 / 40 and found.low <= found.value <= found.high and ratio([1], [0]) is None
