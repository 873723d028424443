import json

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation import longgen_files as files
from megatron_lwz.evaluation.longgen_bench import mentions, summarise
from tests.support.files import write_jsonl
from tests.support.longgen import ENTRIES, response, row, write_dataset


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "LongGenBench")


def written(tmp_path, documents, **given):
    rows = [{"prompt": d.prompt, "response": response(int(d.id), **given)} for d in reversed(documents.values())]
    return files.read_written(write_jsonl(tmp_path / "r.jsonl", rows), documents)


def test_figures_are_the_public_ones(dataset, tmp_path):
    documents = files.read_documents(dataset)
    found = written(tmp_path, documents, written=10)
    verdicts = [{c: c.event != "guitar lesson" for c in documents[w.id].checks if c.number <= 10} for w in found]
    result = summarise(documents, found, verdicts)
    # static.ipynb: yes / results, yes / checks; eval.py: entries / number. Of 6 checks 5 stand in the first 10 entries.
    value = {name: e.value for name, e in result.metrics.items()}
    assert value["completion"] == 10 / ENTRIES and value["stic_1"] == 3 / 5 and value["stic_2"] == 3 / 6
    assert (value["stic_1_once"], value["stic_1_range"], value["stic_1_periodic"]) == (1, 1, 0)
    assert value["mentioned"] == pytest.approx(5 / 6) and result.metrics["stic_2"].count == 72
    assert result.curves.decays["completion"].part == 6 and [e.value for e in result.curves.curves["completion"]] == [
        *[1] * 5,
        *[0] * 3,
    ]
    json.dumps(result.as_json(), allow_nan=False)
    assert result.rows[0]["stic_2"] == 0.5


def test_checks_without_a_verdict_are_left_out_and_counted(dataset, tmp_path):
    documents = files.read_documents(dataset)
    found = written(tmp_path, documents)
    verdicts = [dict.fromkeys(documents[w.id].checks[:2], True) for w in found]
    result = summarise(documents, found, verdicts)
    assert result.unjudged == 12 * 4 and result.metrics["stic_1"].value == 1 and result.metrics["stic_2"].count == 24
    assert "stic_1" not in summarise(documents, found, None).metrics


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (" it begins.\n#*# Week 2: on", [1, 2]),
        ("#*# Week 1: it begins\n#*# Week 2: on\n#*# Week 2: twice", [1, 2]),
        ("Week 1: it begins #*# Week 3: on", [1, 3]),
        ("", [1]),
    ],
)
def test_a_text_continues_the_heading_of_the_prompt_or_repeats_it(dataset, tmp_path, text, numbers):
    documents = files.read_documents(dataset)
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": 0, "response": text}])
    (found,) = files.read_written(path, documents)
    assert list(found.entries) == numbers and "twice" not in found.entries.get(2, "")


def test_an_output_file_of_the_public_scripts_brings_blocks_and_verdicts(dataset, tmp_path):
    documents = files.read_documents(dataset)
    given = row(3)
    output = {
        **{key: given[key] for key in ("checks_once", "checks_range", "checks_periodic", "type", "number")},
        "input": given["prompt"],
        "output_blocks": ("#*# Week 1:" + response(3)).split("#*#"),
        "word_count": 9,
        "results_once": {"2": "yes"},
        "results_range": {"9": "no", "10": "yes"},
        "results_periodic": {"5": "yes", "10": "yes"},
    }
    path = tmp_path / "out.json"
    path.write_text(json.dumps([output], indent=4))
    (found,) = files.read_written(path, documents)
    assert found.id == "3" and len(found.entries) == ENTRIES and sorted(found.verdicts.values()) == [False, *[True] * 4]
    result = summarise(documents, [found], [found.verdicts])
    assert result.metrics["stic_1"].value == 0.8 and result.unjudged == 1
    for change, said in (
        ({"input": "x"}, "row 1|line 1: its 'input' is no prompt"),
        ({"output_blocks": "x"}, "must be a list of texts"),
        ({"results_once": {"2": "maybe"}}, "must map numbers of entries to yes or no"),
    ):
        path.write_text(json.dumps([output | change]))
        with pytest.raises(DataError, match=said):
            files.read_written(path, documents)


def test_the_public_question_is_read_from_its_script(dataset, tmp_path):
    template = files.read_template(dataset.parent.parent / "Evalution" / "eval.py")
    assert template == "Entry: {entry}### Is {event} in it? Say 'yes' or 'no'."
    asked = files.check_question("a {event} b", "c {entry}", template)
    assert asked.user == "Entry: a {event} b### Is c {entry} in it? Say 'yes' or 'no'."
    assert "a {event} b" in files.check_question("a {event} b", "c", None).user
    for text in ("x = (", "prompt = 'a' + b"):
        (tmp_path / "eval.py").write_text(text)
        with pytest.raises(DataError, match=r"not LongGenBench's eval.py"):
            files.read_template(tmp_path / "eval.py")


def test_answers_and_mentions():
    assert files.read_answer("Yes.") and files.read_answer("<think>yes?</think> no") is False
    assert files.read_answer("It is not clear") is None
    assert mentions("They attended the parenting workshops", "Attend a parenting workshop")
    assert not mentions("They went to a workshop", "Attend a parenting workshop") and not mentions("a", "to")


@pytest.mark.parametrize(
    "change",
    [
        {"number": 0},
        {"number": 10**9},
        {"type": 3},
        {"checks_once": []},
        {"checks_range": {"a": "b"}},
        {"checks_once": {"1": 2}},
        {"checks_once": {"0": "b"}},
    ],
)
def test_a_malformed_prompt_names_its_place(dataset, change):
    dataset.write_text(json.dumps([row(0), row(1) | change], indent=1))
    with pytest.raises(DataError, match=r"Dataset_short\.json, line \d+: not a prompt of LongGenBench"):
        files.read_documents(dataset)
