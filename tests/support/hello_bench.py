"""A small copy of Quehry/HelloBench in the public form, with other words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.files import write_jsonl

TASKS: Mapping[str, Sequence[str]] = {
    "chat": ("rewrite", "explanation"),
    "heuristic_text_generation": ("story_writing",),
}
WEIGHTS = {"rewrite": [20.0, 50.0, 30.0], "explanation": [10.0, 10.0, 80.0], "story_writing": [60.0, 40.0]}
JUDGE = '''import openai

GPT_KEY = "Put your key here"
SYS_PROMPT = """You judge."""
USER_PROMPT = """Judge {{\\"instruction\\": {instruction}}} and {{\\"response\\": {response}}} by {{\\"checklists\\": {checklists}}}, {num_checklist} items."""
'''


def row(task: str, number: int, category: str, ending: str = "") -> dict[str, Any]:
    """A row with the public columns."""
    checklist = [f"Is {category} {n} met?" for n in range(len(WEIGHTS[category]))]
    listed = [{"checklist_id": n, "checklist_content": text} for n, text in enumerate(checklist)]
    return {
        "id": f"{task}_{number:03}",
        "category": category,
        "instruction": f"Write {task} {number}.{ending}",
        "checklists": checklist,
        "formatted_checklists": str(listed),
        "num_checklist": len(checklist),
        "raw_text": "",
        "requirements": [],
    }


def write_benchmark(root: Path) -> Path:
    """Two tasks of 6 instructions, one length-constrained version, weights and the judge's script."""
    for task, categories in TASKS.items():
        rows = [row(task, n, categories[n % len(categories)]) for n in range(6)]
        write_jsonl(root / "data" / "main_data" / f"{task}.jsonl", rows)
    name = "heuristic_text_generation"
    long = [row(name, n, "story_writing", "\nEnsure the essay is no shorter than 2,000 words.") for n in range(6)]
    write_jsonl(root / "data" / "length_constrained_data" / f"{name}_2k.jsonl", long)
    (root / "weighted_scores.txt").write_text(f"REGRESSION_DICT = {WEIGHTS!r}\n", encoding="utf-8")
    (root / "llm_judge.py").write_text(JUDGE, encoding="utf-8")
    return root
