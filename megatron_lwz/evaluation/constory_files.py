"""Reads ConStory-Bench's public files unchanged: prompts, stories, the checker's questions, evaluations (2603.05890).

Prompts and stories are Parquet tables of the data set jayden8888/ConStory-Bench, evaluations are CSV files with one column per
subtype of error, and the questions are in the folder `prompts` of Picrew/ConStory-Bench.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.decoding import decode_json
from megatron_lwz.errors import DataError, refusal
from megatron_lwz.evaluation.responses import cut, read_responses
from megatron_lwz.evaluation.tasks import Task, read_tasks
from megatron_lwz.reading import read_rows, read_text
from megatron_lwz.writing import write_text

CATEGORIES: Mapping[str, tuple[str, Sequence[str]]] = {
    "characterization": (
        "Character Consistency",
        ("memory_contradictions", "knowledge_contradictions", "skill_power_fluctuations", "forgotten_abilities"),
    ),
    "factual_detail": (
        "Factual & Detail Consistency",
        ("appearance_mismatches", "nomenclature_confusions", "quantitative_mismatches"),
    ),
    "narrative_style": ("Narrative & Style", ("perspective_confusions", "tone_inconsistencies", "style_shifts")),
    "timeline_plot": (
        "Timeline & Plot Logic",
        (
            "absolute_time_contradictions",
            "duration_timeline_contradictions",
            "simultaneity_contradictions",
            "causeless_effects",
            "causal_logic_violations",
            "abandoned_plot_elements",
        ),
    ),
    "world_building": (
        "World-building & Setting",
        ("core_rules_violations", "social_norms_violations", "geographical_contradictions"),
    ),
}
"""Maps each category to its name in the public questions and its subtypes: 5 categories, 19 subtypes."""
DURATIONS = ("duration_timeline_contradictions", "duration_contradictions")
"""A subtype, and the key under which the public question asks for it. The public script reads the first one only, and so
never counts it."""
COLUMNS = [f"{category}_{subtype}" for category, (_, subtypes) in CATEGORIES.items() for subtype in subtypes]
CONTENT, QUERY = "{{ Content }}", "{{ Query }}"
STORY = "generated_story"
_LONGEST_CELL = 2**27

Errors = Mapping[str, Sequence[Mapping[str, Any]]]
"""Maps each column to the errors found: each with `exact_quote` and, mostly, `contradiction_pair`."""


@dataclass(frozen=True)
class Story:
    """A story to check. `kind` is the task type of its prompt. `errors`: those that its file holds."""

    id: str
    text: str
    language: str = ""
    kind: str = ""
    prompt: str = ""
    errors: Errors | None = None
    judge: str = ""


def read_prompts(path: Path) -> dict[str, Task]:
    """Reads prompts.parquet, or the same rows in another form: id, language, task_type, prompt. Raises DataError."""
    return {task.id: task for task in read_tasks(path)}


def read_stories(path: Path, prompts: Mapping[str, Task], model: str | None = None) -> tuple[list[Story], int]:
    """Reads responses, ours or stories.parquet of the data set, and counts the rows without a story.

    `model`: which one, where the file holds the stories of several. Raises DataError.
    """
    first = next(iter(read_rows(path)), None)
    if first is None:
        raise DataError(path, "no stories in this file")
    if STORY not in first.value:
        if model is not None:
            raise DataError(path, "holds one model's responses: leave --model away")
        found = []
        for response in read_responses(path, list(prompts.values())):
            if response.id not in prompts:
                raise DataError(
                    path, f"response {response.id!r} answers no prompt of the file: are these its responses?"
                )
            if response.sample:
                raise DataError(path, f"prompt {response.id!r} has several responses; the benchmark takes one")
            found.append(_story(response.id, response.text, prompts[response.id].row))
        return [story for story in found if story.text], sum(not story.text for story in found)
    return _read_table(path, prompts, model)


def _read_table(path: Path, prompts: Mapping[str, Task], model: str | None) -> tuple[list[Story], int]:
    rows = [row for row in read_rows(path) if model is None or row.value.get("model_name") == model]
    models = list(dict.fromkeys(str(row.value.get("model_name")) for row in rows))
    if not rows:
        raise DataError(path, f"no stories of model {model!r} here")
    if len(models) > 1:
        raise DataError(path, f"holds stories of several models: name one by --model: {', '.join(models):.300}")
    found: dict[str, Story] = {}
    missing = 0
    for row in rows:
        identity, text = str(row.value.get("id")), row.value.get(STORY)
        if identity not in prompts:
            raise row.error(f"id {identity!r:.80} is no prompt of the benchmark")
        if identity in found:
            raise row.error(f"id {identity!r} stands there twice")
        if text is not None and not isinstance(text, str):
            raise row.error(f"'{STORY}' must be a text, got {text!r:.80}")
        text = cut(text or "", None).answer
        if text:
            found[identity] = _story(identity, text, prompts[identity].row)
        missing += not text
    return list(found.values()), missing


def _story(identity: str, text: str, row: Mapping[str, Any]) -> Story:
    language, kind, prompt = (str(row.get(key) or "") for key in ("language", "task_type", "prompt"))
    return Story(identity, text, language, kind, prompt)


def read_templates(folder: Path) -> dict[str, str]:
    """Reads the public questions, category → text with CONTENT and QUERY, from the copy or its `prompts` folder.

    Raises DataError.
    """
    found = {}
    for category in CATEGORIES:
        name = f"{category}.md"
        path = next((p for p in (folder / "prompts" / name, folder / name) if p.is_file()), None)
        if path is None:
            raise DataError(folder, f"no {name} here: name a copy of Picrew/ConStory-Bench, or its folder prompts")
        text = read_text(path)
        if CONTENT not in text:
            raise DataError(path, f"not a question of ConStory-Checker: {CONTENT} must stand in it")
        found[category] = text
    return found


def read_evaluations(path: Path, column: str | None = None) -> tuple[list[Story], int]:
    """Reads an evaluation of the public checker, or ours: the stories with their errors, and the rows left out.

    Left out are rows without a story, and rows where a category got no verdict (which the public script counts as free of
    errors). `column`: the story's column; without it, the one whose name ends with `_story`. Raises DataError.
    """
    found: list[Story] = []
    incomplete = 0
    for line, row in _csv_rows(path):
        name = column or next((key for key in row if key == STORY or key.endswith("_story")), None)
        missing = [key for key in ("id", name or "*_story", *COLUMNS) if key not in row]
        if missing or name is None:
            raise DataError(path, f"no column {missing[0]!r} here: there are {', '.join(row):.300}", line=line)
        text = row[name]
        if not text.strip() or any(row[key].startswith("ERROR") for key in COLUMNS):
            incomplete += 1
            continue
        errors = {key: _cell(path, line, key, row[key]) for key in COLUMNS}
        language, kind, prompt = (row.get(key, "") for key in ("language", "task_type", "prompt"))
        found.append(Story(row["id"], text, language, kind, prompt, errors, row.get("judge_model", "")))
    if not found:
        raise DataError(path, "no story with a verdict on every category in this file")
    return found, incomplete


def write_evaluations(path: Path, stories: Sequence[Story], errors: Sequence[Errors | None], judge: str) -> None:
    """Writes an evaluation that the public metrics script can read. Stories without a verdict are left out."""
    head = ["id", "language", "task_type", "prompt", STORY, "judge_model", "evaluation_status", *COLUMNS]
    lines = io.StringIO(newline="")
    rows = csv.writer(lines)
    rows.writerow(head)
    for story, found in zip(stories, errors, strict=True):
        if found is not None:
            cells = [json.dumps(found[column], ensure_ascii=False) for column in COLUMNS]
            texts = [story.id, story.language, story.kind, story.prompt, story.text]
            rows.writerow([*texts, judge, "completed", *cells])
    write_text(path, lines.getvalue(), private=True)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            for row in rows:
                if None in row or None in row.values():
                    raise DataError(path, "has more or fewer cells than the first line", line=rows.line_num)
                yield rows.line_num, row
    except OSError as error:
        raise DataError(path, f"cannot be read {refusal(error, 'check the path')}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(path, f"not a CSV file ({error})") from error


def _cell(path: Path, line: int, column: str, text: str) -> list[dict[str, Any]]:
    """Returns the errors of a cell: a JSON list, or nothing."""
    if text.strip().lower() in ("", "none", "nan"):
        return []
    try:
        value = decode_json(text)
    except ValueError as error:
        raise DataError(path, f"{column!r} holds no JSON list: {text!r:.80}", line=line) from error
    return as_errors(value)


def as_errors(value: Any) -> list[dict[str, Any]]:
    """Returns the objects of a list that quote something, as the public script counts them."""
    listed = value if isinstance(value, list) else [value]
    return [one for one in listed if isinstance(one, dict) and "exact_quote" in one]
