"""A small ConStory-Bench in the public form, with other words: prompts, the checker's questions, an evaluation."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_lwz.evaluation.constory_files import CATEGORIES, COLUMNS

KINDS = ("generation", "continuation", "expansion", "completion")
EYES = {
    "exact_quote": "her green eyes",
    "location": "Chapter 1",
    "contradiction_pair": "her brown eyes",
    "contradiction_location": "Chapter 2",
    "context": "eyes change",
}


def prompts(count: int = 12) -> list[dict[str, Any]]:
    """Rows with the columns of prompts.parquet."""
    return [
        {"id": n, "language": "en", "task_type": KINDS[n % 4], "prompt": f"Tell the story of number {n}."}
        for n in range(count)
    ]


def story(number: int, *, faulty: bool) -> str:
    """100 words; a faulty one changes the colour of somebody's eyes between its first and last words."""
    eyes = ("her green eyes", "her brown eyes") if faulty else ("her green eyes", "her green eyes")
    return f"{eyes[0]} {' '.join(['word'] * 93)} {number} {eyes[1]}"[:10_000]


def write_questions(root: Path) -> Path:
    """The copy of the repository, as far as it is read."""
    folder = root / "prompts"
    folder.mkdir(parents=True)
    for category in CATEGORIES:
        text = f"<|im_start|>user\nFind {category}. Focus: **{{{{ Query }}}}**\n>>>{{{{ Content }}}}<<<\n<|im_end|>"
        (folder / f"{category}.md").write_text(text, encoding="utf-8")
    return root


def write_evaluation(path: Path, rows: Sequence[Mapping[str, Any]], column: str = "m1_story") -> Path:
    """An evaluation as the public checker writes it: `rows` hold id, story and what differs from empty cells."""
    head = ["id", "language", "task_type", "prompt", column, "evaluation_timestamp", "evaluation_status", *COLUMNS]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        lines = csv.DictWriter(file, head)
        lines.writeheader()
        for row in rows:
            given = dict(row)
            cells = dict.fromkeys(COLUMNS, "[]") | {column: given.pop("story")}
            cells |= {
                name: value if isinstance(value, (str, int)) else json.dumps(value) for name, value in given.items()
            }
            lines.writerow(cells)
    return path
