"""The readers of public benchmarks' files, each with examples of what it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_lwz.evaluation import constory_files, hello_bench_files, longform_files, longgen_files, slop
from megatron_lwz.evaluation.constory import read_errors
from megatron_lwz.evaluation.judge_prompts import read_checklist_scores, read_passage_marks
from tests.fuzz.mutation import from_bytes, from_json
from tests.fuzz.run import Target

_TASK = {"step_outputs": {"4": "plan", "6": "one", "7": "two"}, "writing_prompt": {"writing_prompt": "w"}, "judge_model": "j",
         "chapter_judge_scores": {"1": {"Coherent": 18.0}}}  # fmt: skip
_RUNS = ({"run": {"longform_tasks": {"1": {"1": _TASK, "2": {**_TASK, "writing_prompt": "w"}}}}},)
_ITEM = {"id": "a", "category": "rewrite", "instruction": "No shorter than 2,000 words.", "checklists": ["x", "y"]}
_SCORES = [{"checklist_id": n, "evaluation_score": 0.5} for n in (0, 1)]
_JUDGED = {"id": "a", "instruction": "i", "response": "r", hello_bench_files.JUDGED: _SCORES}
_ITEMS = {"a": hello_bench_files.Item("a", "chat", "rewrite", "i", ["x", "y"], None)}
_WEIGHTS = ("REGRESSION_DICT = {'rewrite': [10.0, 90.0],\n 'b': [1]}", "x = {}")
_DOCUMENT = {"prompt": "p", "checks_once": {"2": "a feast"}, "checks_range": {}, "checks_periodic": {"3": "b"}, "type": "Week",
             "prefix": "#*# Week 1:", "number": 4}  # fmt: skip
_OUTPUT = {"input": "p", "output_blocks": ["", " Week 1: a", " Week 2: b"], "results_once": {"2": "yes"}, "results_range": {},
           "results_periodic": {}}  # fmt: skip
_KNOWN = {"0": longgen_files.Document("0", "p", "Week", 4, "#*# Week 1:", [longgen_files.Check("once", 2, "a feast")])}
_QUESTION = ('prompt = f"Context: " + blocks[i] + f"Is {event} in it?"', "def f():\n  prompt = 'a' + b + f'{c}'")
_CELLS = ["[]"] * len(constory_files.COLUMNS)
_CELLS[4] = '"[{""exact_quote"": ""q"", ""contradiction_pair"": null}]"'
_TABLE = (f"id,language,m_story,{','.join(constory_files.COLUMNS)}\n1,en,a story,{','.join(_CELLS)}\n",)
_TABLE_WORDS = ('"', '""', ",", "\n", "\r", "ERROR: x", "None", "[{", "nan", "id", "\x00")
_REPLIES = (
    '{"Substance": 8, "Coherence": 7, "Language": "9/10", "Reading": 5}',
    '[{"checklist_id": "0", "evaluation_score": 0.5}, {"checklist_id": 1, "evaluation_score": "1"}] {"1": 0.5, "2": 1}',
    "[Scores]\nCoherent: [18]\n**Purple Prose**: 3/20",
    '{"appearance_mismatches": [{"exact_quote": "a"}], "duration_contradictions": []}',
    "Yes.",
)
_REPLY_WORDS = ("yes", "no", "[Scores]", "Coherent:", '"exact_quote"', '"checklist_id"', "[]", "{", "1e999", "-1", "21")
_RUBRIC = longform_files.Rubric("{chapter_text}", ["Coherent", "Purple Prose"], ["purple prose"], {})


def _replies(data: bytes) -> None:
    said = data.decode("utf-8", "replace")
    read_passage_marks(said)
    longgen_files.read_answer(said)
    for public in (True, False):
        read_checklist_scores(said, 2, public=public)
    for category in constory_files.CATEGORIES:
        read_errors(said, category)
    marks = longform_files.read_marks(said, _RUBRIC)
    if marks:
        longform_files.chapter_score(marks, _RUBRIC)


def _slop(path: Path) -> None:
    for name in slop.FILES:
        path.with_name(name).write_bytes(path.read_bytes())
    slop.read_slop(path.parent).score("She took a deep breath.")


def targets(in_file: Callable[[str, Callable[[Path], object]], Callable[[bytes], object]]) -> tuple[Target, ...]:
    """Returns the targets; `in_file` puts bytes into a file of a name."""
    return (
        Target("longform", from_json(_RUNS, tuple(_TASK)), in_file("longform.json", longform_files.read_stories)),
        Target("slop", from_json(([["a"], ["deep breath"]],), ("a",)), in_file("s/slop.json", _slop)),
        Target("hello_bench", from_json((_ITEM,), tuple(_ITEM)), in_file("hb/chat.jsonl", lambda p: hello_bench_files.read_benchmark(p.parent))),
        Target("hello_judgements", from_json((_JUDGED,), tuple(_JUDGED)), in_file("j.jsonl", lambda p: hello_bench_files.read_judgements([p], _ITEMS))),
        Target("hello_weights", from_bytes(_WEIGHTS, ("[", "{", "1e999", "'rewrite'")), in_file("hw/weighted_scores.txt", lambda p: hello_bench_files.read_weights(p.parent, {}))),
        Target("longgen", from_json((_DOCUMENT,), tuple(_DOCUMENT)), in_file("lg.jsonl", longgen_files.read_documents)),
        Target("longgen_outputs", from_json((_OUTPUT,), tuple(_OUTPUT)), in_file("lo.jsonl", lambda p: longgen_files.read_written(p, _KNOWN))),
        Target("longgen_question", from_bytes(_QUESTION, ("prompt", "=", "+", "f'", "{")), in_file("eval.py", longgen_files.read_template)),
        Target("constory", from_bytes(_TABLE, _TABLE_WORDS), in_file("m.csv", constory_files.read_evaluations)),
        Target("benchmark_replies", from_bytes(_REPLIES, _REPLY_WORDS), _replies),
    )  # fmt: skip
