"""Reads EQ-Bench's long-form files (EQ-bench/longform-writing-bench) unchanged: chapters, the judge's marks, criteria.

The public script keeps everything in one runs file: {run: {"longform_tasks": {iteration: {prompt: task}}}}. A task's step
outputs are five steps of planning, then the chapters; the marks of each chapter are 0 to 20.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.asking import Shown, ask_all
from megatron_lwz.evaluation.judge_prompts import digest
from megatron_lwz.evaluation.parts import Piece, unit_starts
from megatron_lwz.evaluation.slop import data_file
from megatron_lwz.reading import read_json, read_object, read_text
from megatron_lwz.rewards.judge_client import Judge, Question

TASKS = "longform_tasks"
BEST = 20
"""Best mark; the worst is 0."""
SAMPLING = {"temperature": 0.0, "max_tokens": 16000}
"""The judge's sampling in the public script."""
_SNIFFED = 4096
_PLANNING, _PLAN, _PROFILES = 5, "4", "5"
_STEEP = ("forced poetry or metaphor", 1.7)
"""The criterion that the public script raises to a power, and the power."""
_MARK = re.compile(r"^\s*\**([^:\n*]{1,80}?)\**\s*:\s*\**\[?(-?\d{1,3}(?:\.\d{1,3})?)(?![\d%])", re.MULTILINE)


@dataclass(frozen=True)
class Rubric:
    """The public criteria of a chapter. `negative` and `weights` are in lower case; a criterion without a weight has 1."""

    prompt: str
    criteria: Sequence[str]
    negative: Sequence[str]
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Story:
    """One task of the runs file: its chapters, what the judge is shown beside them, and the marks that the file holds."""

    id: str
    sample: int
    request: str
    plan: str
    profiles: str
    chapters: Sequence[str]
    marks: Sequence[Mapping[str, float] | None]
    judge: str


def read_rubric(folder: Path) -> Rubric:
    """Reads criteria, weights and the judge's prompt from a copy of the repository, or its `data` folder. Raises DataError."""
    prompt_file = data_file(folder, "longform_creative_writing_judging_prompt_chapter.txt")
    prompt = read_text(prompt_file)
    missing = [part for part in ("{chapter_text}", "{creative_writing_criteria}") if part not in prompt]
    if missing:
        raise DataError(prompt_file, f"not the long-form benchmark's prompt: {missing[0]} must stand in it")
    weights_file = data_file(folder, "criteria_weights.json")
    weights = read_object(weights_file)
    if not all(isinstance(weight, (int, float)) and weight >= 0 for weight in weights.values()):
        raise DataError(weights_file, "must map criteria to numbers from 0")
    return Rubric(
        prompt,
        _lines(data_file(folder, "longform_creative_writing_criteria_chapter.txt")),
        [name.lower() for name in _lines(data_file(folder, "longform_negative_criteria_chapter.txt"))],
        {name.lower(): float(weight) for name, weight in weights.items()},
    )


def read_stories(path: Path, run: str | None = None) -> list[Story]:
    """Reads the stories of one run of a runs file that have chapters. Raises DataError.

    `run`: which one, where the file holds several. A chapter that the file lacks is left out with those after it, because
    its place would be wrong.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not value or not all(isinstance(v, dict) and TASKS in v for v in value.values()):
        raise DataError(path, f"not a runs file of the long-form benchmark: it reads {{run: {{{TASKS!r}: …}}}}")
    if run is None and len(value) > 1:
        raise DataError(path, f"holds several runs: name one by --run: {', '.join(value):.300}")
    if run is not None and run not in value:
        raise DataError(path, f"no run {run!r:.80} here: there are {', '.join(value):.300}")
    tasks = value[run if run is not None else next(iter(value))][TASKS]
    found = []
    try:
        for iteration, by_prompt in tasks.items():
            for prompt, task in by_prompt.items():
                if (story := _story(str(prompt), int(iteration), task)) is not None:
                    found.append(story)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(path, f"not a runs file of the long-form benchmark ({error!r})") from error
    if not found:
        raise DataError(path, "no story with two chapters or more in this run: generate them first")
    return found


def is_runs_file(path: Path) -> bool:
    """Returns whether a file begins like a runs file: with a run's settings, which name its tasks before any text."""
    try:
        with path.open("rb") as file:
            return TASKS.encode() in file.read(_SNIFFED)
    except OSError:
        return False


def as_piece(story: Story) -> Piece:
    """Returns the story with its chapters as parts."""
    return Piece(story.id, story.sample, story.chapters, story.request)


def chapter_score(marks: Mapping[str, float], rubric: Rubric) -> float | None:
    """Returns a chapter's score, 0 to 20, as the public script computes it; None without marks.

    It is the weighted mean of the marks, those of negative criteria subtracted from 20.
    """
    total = weights = 0.0
    for name, mark in marks.items():
        key = name.lower().strip()
        value = BEST - mark if key in rubric.negative else mark
        if key == _STEEP[0]:
            value = (value / BEST) ** _STEEP[1] * BEST
        weight = rubric.weights.get(key, 1.0)
        total, weights = total + weight * value, weights + weight
    return total / weights if weights else None


def chapter_questions(story: Story, rubric: Rubric) -> list[Question]:
    """Returns the public question about each chapter of a story."""
    criteria = "\n".join(f"- {name}" for name in rubric.criteria)
    lower = [name for name in rubric.criteria if name.lower() in rubric.negative]
    version = f"eqbench-longform@{digest(rubric.prompt)}"
    found = []
    for number, chapter in enumerate(story.chapters, start=1):
        parts = {
            "writing_prompt": story.request,
            "final_plan": story.plan,
            "character_profiles": story.profiles,
            "chapter_text": chapter,
            "chapter_number": str(number),
            "creative_writing_criteria": criteria,
            "lower_is_better_criteria": ", ".join(lower) or "None",
        }
        asked = re.sub(r"\{(\w+)\}", lambda m, parts=parts: parts.get(m[1], m[0]), rubric.prompt)  # type: ignore[misc]
        found.append(Question(asked, version))
    return found


async def judge_chapters(
    stories: Sequence[Story], rubric: Rubric, judge: Judge, shown: Shown = lambda *_: None
) -> list[list[dict[str, float] | None]]:
    """Asks the public question about every chapter. Returns its marks with `quality`, the chapter's score.

    Raises EngineError for a judge that answers nothing.
    """
    questions = [question for story in stories for question in chapter_questions(story, rubric)]
    verdicts = iter(await ask_all(judge, questions, lambda reply: read_marks(reply, rubric), shown))
    return [
        [with_score(verdict.value if (verdict := next(verdicts)) else None, rubric) for _ in story.chapters]
        for story in stories
    ]


def with_score(marks: Mapping[str, float] | None, rubric: Rubric) -> dict[str, float] | None:
    """Returns a chapter's marks with its score as `quality`; None without marks."""
    score = chapter_score(marks, rubric) if marks else None
    return {"quality": score, **marks} if marks and score is not None else None


def read_marks(reply: str, rubric: Rubric) -> dict[str, float] | None:
    """Returns the marks of a reply, 0 to 20, None if one of the criteria has none (the public script then takes the rest)."""
    given = {name.strip().lower(): float(value) for name, value in _MARK.findall(reply.rpartition("[Scores]")[2])}
    marks = {name: given[name.lower()] for name in rubric.criteria if 0 <= given.get(name.lower(), -1) <= BEST}
    return marks if len(marks) == len(rubric.criteria) else None


def _story(prompt: str, iteration: int, task: Mapping[str, Any]) -> Story | None:
    outputs, scores = task["step_outputs"], task.get("chapter_judge_scores") or {}
    chapters: list[str] = []
    marks: list[dict[str, float] | None] = []
    while isinstance(text := outputs.get(str(_PLANNING + len(chapters) + 1)), str) and unit_starts(text):
        chapters.append(text)
        marks.append(_numbers(scores.get(str(len(chapters)))))
    request = task["writing_prompt"]
    request = request["writing_prompt"] if isinstance(request, dict) else request
    if not isinstance(request, str):
        raise ValueError(f"writing_prompt of task {prompt}")
    plan, profiles = (str(outputs.get(step) or "") for step in (_PLAN, _PROFILES))
    judge = str(task.get("judge_model") or "")
    return Story(prompt, iteration, request, plan, profiles, chapters, marks, judge) if len(chapters) > 1 else None


def _numbers(scores: Any) -> dict[str, float] | None:
    """Returns the marks of a chapter, None for a chapter that was not judged. Raises ValueError."""
    if not scores:
        return None
    for name, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= BEST:
            raise ValueError(f"{name!r:.80} has {value!r:.80}, not a mark from 0 to {BEST}")
    return {name: float(value) for name, value in scores.items()}


def _lines(path: Path) -> list[str]:
    found = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not found:
        raise DataError(path, "is empty: it lists one criterion per line")
    return found
