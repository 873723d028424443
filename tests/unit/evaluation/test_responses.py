import json
import math

import pytest

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.response_file import ResponseFile
from megatron_lwz.evaluation.responses import cut, read_responses
from megatron_lwz.evaluation.tasks import read_tasks
from megatron_lwz.types import LengthRange


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    )
    return path


@pytest.mark.parametrize(
    ("raw", "template", "stop", "thinking", "answer", "fault"),
    [
        ("<think>a</think>\n<answer>b</answer>", "think", None, "a", "b", None),
        ("<think>a</think>\n<answer>b", "think", "</answer>", "a", "b", None),
        ("<think>a</think>\n<answer>b", "think", None, "a", "b", "answer not closed"),
        ("<think>a</think>b", "think", None, "a", "", "text outside think and answer"),
        ("<answer>b</answer>", "direct", None, "", "b", None),
        ("plain text", None, None, "", "plain text", None),
        ("<think>a</think>\n\nb", None, None, "a", "b", None),
        ("<think>a</think>b <b></think>", None, None, "a", "b <b></think>", None),
        ("<think>\na\n</think>b", None, None, "a", "b", None),  # one line break: the public marker misses it
        ("a</think>b", None, None, "a", "b", None),  # the chat template opened it
        ("<think>never ends", None, None, "never ends", "", None),
        ("<think>a</think><answer>b</answer>", None, None, "a", "b", None),
        ("<think>a</think><answer>cut off", None, None, "a", "cut off", None),
        ("write <answer> tags", None, None, "", "write <answer> tags", None),
    ],
)
def test_thinking_is_cut_off(raw, template, stop, thinking, answer, fault):
    written = cut(raw, template, stop=stop)
    assert (written.thinking, written.answer, written.fault) == (thinking, answer, fault)


def test_prompt_files_of_all_benchmarks_are_read_unchanged(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        {"id": "a", "prompt": "ours", "length": {"lower": 100, "upper": 200}},
        {"index": 7, "query": "WritingBench", "checklist": []},
        "",
        {"idx": 8, "question": "Arena-Write", "type": "t", "length": 300, "baseline_response": ""},
        {"prompt": "LongBench-Write", "type": "t", "length": 100},
        {"id": 0, "prompt": "zero", "length": 0},
    )
    tasks = read_tasks(path)
    assert [task.id for task in tasks] == ["a", "7", "8", "3", "0"]
    assert [task.prompt for task in tasks] == ["ours", "WritingBench", "Arena-Write", "LongBench-Write", "zero"]
    asked = [LengthRange(100, 200), None, LengthRange(300, 300), LengthRange(100, 100), None]
    assert [task.length for task in tasks] == asked
    assert tasks[2].line == 4 and tasks[1].row["checklist"] == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (['{"prompt": '], "line 1: not valid JSON"),
        (["[1]"], "line 1: a row must be a JSON object"),
        ([{"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"}], "line 2: id '1' was already used on line 1"),
        ([{"text": "a"}], "line 1: no prompt: give one of prompt, query"),
        ([{"prompt": " "}], "line 1: 'prompt' must not be empty"),
        ([{"prompt": "a", "length": "long"}], "line 1: 'length' must be"),
        ([{"prompt": "a", "length": math.inf}], "line 1: 'length' must be .* got inf"),
        ([{"prompt": "a", "length": math.nan}], "line 1: 'length' must be .* got nan"),
        ([{"prompt": "a", "length": 1.5}], "line 1: 'length' must be .* got 1.5"),
        ([{"prompt": "a", "length": [1, 2]}], "line 1: 'length' must be"),
        ([{"prompt": "a", "length": -1}], "line 1: 'length' must have"),
        ([{"prompt": [{"role": "system", "content": "a"}]}], "line 1: 'prompt' must be the text of one user turn"),
        ([{"instruction": "a", "input": ["b"]}], "line 1: 'input' must be a text beside the request"),
        ([{"query": "a", "system_prompt": "b"}], "line 1: 'system_prompt' would be lost"),
        ([{"messages": []}], "line 1: no prompt: .*; the row has messages"),
        ([{"prompt": "a", "length": {"lower": 9, "upper": 1}}], "line 1: 'length' must have"),
        ([{"prompt": "a", "id": [1]}], "line 1: 'id' must be"),
        ([], "no prompts"),
    ],
)
def test_faults_of_prompt_files_name_the_line(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        read_tasks(write(tmp_path / "p.jsonl", *rows))


def test_alpacas_input_and_message_lists_are_prompts_in_tasks_and_in_responses_to_them(tmp_path):
    rows = [
        {"id": 1, "instruction": "Continue.", "input": "It rained.", "output": "no prompt"},
        {"id": 2, "prompt": [{"role": "user", "content": [{"type": "text", "text": "Write."}]}], "input": "no prompt"},
    ]
    tasks = read_tasks(write(tmp_path / "p.jsonl", *rows))
    assert [task.prompt for task in tasks] == ["Continue.\n\nIt rained.", "Write."]
    answered = [{**row, "response": "text"} for row in rows]
    with ResponseFile(tmp_path / "r.jsonl", tasks, {}) as file:
        for task, row in zip(tasks, answered, strict=True):
            file.add((task.id, 0), row)
    with ResponseFile(tmp_path / "r.jsonl", tasks, {}) as file:
        assert file.done == {("1", 0), ("2", 0)}
    for row in answered:
        del row["id"]
    found = read_responses(write(tmp_path / "o.jsonl", *reversed(answered)), tasks)
    assert [(response.id, response.prompt) for response in found] == [("2", "Write."), ("1", "Continue.\n\nIt rained.")]


def test_whole_floats_and_empty_columns_are_read(tmp_path):
    rows = [
        {"prompt": None, "instruction": "a", "input": "", "id": None, "length": 500.0},
        {"prompt": "b", "instruction": None, "input": "kept", "id": 7, "length": {"lower": 1.0, "upper": 2.0}},
    ]
    tasks = read_tasks(write(tmp_path / "p.jsonl", *rows))
    assert [(task.id, task.prompt, task.length) for task in tasks] == [
        ("0", "a", LengthRange(500, 500)),
        ("7", "b", LengthRange(1, 2)),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"response": None}, "'response' must be a text, got None"),
        ({"response": [{"role": "assistant", "content": "a"}]}, "'response' must be a text"),
        ({"response": "a", "sample": "1"}, "'sample' must be a whole number"),
        ({"response": "a", "id": [1]}, "'id' must be a whole number or a text"),
        ({"response": "a", "prompt": ["b"]}, "turn 1 of 'prompt' must be an object"),
        ({"response": "a", "language": 1}, "'language' must be a text"),
        ({"response": "a", "finish_reason": {}}, "'finish_reason' must be a text"),
        ({"response": "a", "raw": "b", "template": "think", "stop": ["c"]}, "'stop' must be a text"),
        ({"response": "a", "length": math.inf}, "'length' must be"),
    ],
)
def test_faults_of_response_files_name_the_line(tmp_path, row, said):
    path = write(tmp_path / "r.jsonl", {"response": "good"}, row)
    with pytest.raises(DataError, match=f"line 2: {said}"):
        read_responses(path)


def test_response_files_take_prompt_and_length_from_the_prompts(tmp_path):
    tasks = read_tasks(write(tmp_path / "p.jsonl", {"index": 7, "query": "Write", "length": 30}))
    ours = {
        "id": "7",
        "response": "b",
        "raw": "<think>a</think><answer>b",
        "template": "think",
        "finish_reason": "length",
    }
    path = write(
        tmp_path / "r.jsonl",
        ours,
        {"index": 7, "sample": 1, "response": "<think>a</think>b"},
        {"index": 9, "response": ""},
    )
    first, second, third = read_responses(path, tasks)
    assert (first.prompt, first.length, first.fault) == ("Write", LengthRange(30, 30), "answer not closed")
    assert (second.text, second.fault, second.template) == ("b", None, None)
    assert (third.prompt, third.length) == (None, None)
    with pytest.raises(DataError, match="line 2: response '7' stands on line 1"):
        read_responses(write(tmp_path / "d.jsonl", {"index": 7, "response": "a"}, {"index": 7, "response": "a"}))
    with pytest.raises(DataError, match="line 1: 'response' must be a text"):
        read_responses(write(tmp_path / "e.jsonl", {"index": 7, "text": "a"}))
