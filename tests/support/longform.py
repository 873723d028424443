"""A small copy of EQ-bench/longform-writing-bench: its data folder and a runs file, in the public form with other words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

PROMPT = (
    "Prompt: {writing_prompt} Plan: {final_plan} People: {character_profiles} Chapter {chapter_number}: {chapter_text}\n"
    "Lower is better: {lower_is_better_criteria}\nCriteria:\n{creative_writing_criteria}\n"
)


def write_data(root: Path) -> Path:
    """The data folder."""
    folder = root / "data"
    folder.mkdir(parents=True)
    files = {
        "slop_list.json": json.dumps([["whispered"], ["tapestry"]]),
        "slop_list_bigrams.json": json.dumps([["deep breath"]]),
        "slop_list_trigrams.json": json.dumps([["took deep breath"]]),
        "criteria_weights.json": json.dumps({"forced poetry or metaphor": 5, "purple prose": 1}),
        "longform_creative_writing_criteria_chapter.txt": "Coherent\nPurple Prose\nForced Poetry or Metaphor",
        "longform_negative_criteria_chapter.txt": "Forced Poetry or Metaphor\nPurple Prose",
        "longform_creative_writing_judging_prompt_chapter.txt": PROMPT,
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return root


def write_runs(
    path: Path, stories: Mapping[str, Sequence[str]], marks: Mapping[str, Sequence[Mapping[str, float]]] | None = None
) -> Path:
    """A runs file of one run: prompt → chapters, and prompt → marks of the chapters."""
    tasks = {
        prompt: {
            "prompt_id": prompt,
            "writing_prompt": {"category": "c", "title": "t", "writing_prompt": f"Write {prompt}"},
            "iteration_index": 1,
            "test_model": "m",
            "judge_model": "judge-1",
            "status": "completed",
            "step_outputs": {"4": f"plan of {prompt}", "5": f"people of {prompt}"}
            | {str(5 + number): text for number, text in enumerate(chapters, start=1)},
            "chapter_judge_scores": {str(n): given for n, given in enumerate((marks or {}).get(prompt, ()), start=1)},
        }
        for prompt, chapters in stories.items()
    }
    run = {"run_id_base": "x", "test_model": "m", "status": "completed", "longform_tasks": {"1": tasks}, "results": {}}
    path.write_text(json.dumps({"x_m": run}), encoding="utf-8")
    return path
