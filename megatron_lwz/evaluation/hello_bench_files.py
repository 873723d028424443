"""Reads HelloBench's public files unchanged: tasks with checklists, weights, and judgements (Quehry/HelloBench)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError
from megatron_lwz.reading import Row, read_rows, read_text

TASKS = ("open_ended_qa", "summarization", "chat", "text_completion", "heuristic_text_generation")
"""The five tasks, each a file of the same name."""
LENGTHS = ("2k", "4k", "8k", "16k")
"""The length-constrained versions of heuristic_text_generation: at least so many thousand words."""
_FOLDERS = ("data/main_data", "HelloBench", "")
_LENGTH_FOLDERS = ("data/length_constrained_data", "HelloBench/length_constrained_experiments_data", "")
_ASKED = re.compile(r"no (?:shorter|fewer|less) than (\d[\d,]{0,6}) words")
JUDGED = "checklist_wise_evaluation"


@dataclass(frozen=True)
class Item:
    """One instruction with its checklist. `least`: the words it asks for at least, where it names a number."""

    id: str
    task: str
    category: str
    instruction: str
    checklist: Sequence[str]
    least: int | None


def read_benchmark(path: Path, length: str | None = None) -> dict[str, Item]:
    """Reads the tasks that a copy of the repository holds (or a folder of their files), id → item.

    `length`: instead, one of the length-constrained versions. Raises DataError.
    """
    names = [f"heuristic_text_generation_{length}"] if length else TASKS
    files = [file for name in names if (file := _find(path, name, bool(length))) is not None]
    if not files:
        raise DataError(path, f"no {names[0]}.jsonl here: name the folder of HelloBench")
    found: dict[str, Item] = {}
    for file in files:
        for row in read_rows(file):
            item = _item(row, file.stem)
            if item.id in found:
                raise row.error(f"id {item.id!r} stands there twice")
            found[item.id] = item
    return found


def read_weights(path: Path, items: Mapping[str, Item]) -> dict[str, list[float]] | None:
    """Reads the weights of each category's checklist from the copy's weighted_scores.txt, parsed and never executed.

    They are rescaled to a sum of 1. None if there is no such file. Raises DataError, also when a category of the
    items is missing.
    """
    file = find_beside(path, "weighted_scores.txt")
    if file is None:
        return None
    text = read_text(file)
    try:
        (assigned,) = ast.parse(text).body
        value = dict(ast.literal_eval(assigned.value)) if isinstance(assigned, ast.Assign) else {}
        given = {str(name): [float(weight) for weight in weights] for name, weights in value.items()}
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise DataError(file, f"not HelloBench's weights ({error!r})") from error
    for item in items.values():
        weights = given.get(item.category, [])
        if len(weights) != len(item.checklist) or sum(weights) <= 0:
            raise DataError(file, f"category {item.category!r} needs {len(item.checklist)} weights, got {len(weights)}")
    return {name: [weight / sum(weights) for weight in weights] for name, weights in given.items() if sum(weights) > 0}


def find_beside(path: Path, name: str) -> Path | None:
    """Returns a file of the repository that `path` is in or below, None if there is none."""
    folders = (path, *path.absolute().parents[:2])
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def read_judgements(paths: Sequence[Path], items: Mapping[str, Item]) -> dict[str, list[float]]:
    """Reads files of judgements as the public script writes them: id → scores in the order of the checklist.

    Raises DataError.
    """
    found: dict[str, list[float]] = {}
    for path in paths:
        for row in read_rows(path):
            identity, listed = str(row.value.get("id")), row.value.get(JUDGED)
            item = items.get(identity)
            if item is None:
                raise row.error(f"id {identity!r:.80} is not in the benchmark: are these its judgements?")
            if identity in found:
                raise row.error(f"id {identity!r} was judged already on an earlier row; remove one of them")
            found[identity] = _scores(row, item, listed)
    if not found:
        raise DataError(paths[0], "no judgements in this file")
    return found


def judgement_row(item: Item, response: str, scores: Sequence[float], reply: str) -> str:
    """Returns one line of judgements in the public form. The judge's whole reply stands as the first item's reason."""
    listed = [
        {"checklist_id": number, "reason": reply if number == 0 else "", "evaluation_score": score}
        for number, score in enumerate(scores)
    ]
    row = {"id": item.id, "instruction": item.instruction, "response": response, JUDGED: listed}
    return json.dumps(row, ensure_ascii=False)


def _find(path: Path, name: str, constrained: bool) -> Path | None:
    folders = _LENGTH_FOLDERS if constrained else _FOLDERS
    return next((file for folder in folders if (file := path / folder / f"{name}.jsonl").is_file()), None)


def _item(row: Row, task: str) -> Item:
    value = row.value
    texts = [value.get(key) for key in ("id", "category", "instruction")]
    checklist = value.get("checklists")
    if not all(isinstance(text, str) and text for text in texts):
        raise row.error("not a row of HelloBench: it has the texts id, category and instruction")
    if not isinstance(checklist, list) or not checklist or not all(isinstance(text, str) for text in checklist):
        raise row.error("'checklists' must be a list of questions")
    identity, category, instruction = map(str, texts)
    asked = _ASKED.search(instruction)
    return Item(identity, task, category, instruction, checklist, int(asked[1].replace(",", "")) if asked else None)


def _scores(row: Row, item: Item, listed: Any) -> list[float]:
    given = {}
    for one in listed if isinstance(listed, list) else ():
        score = one.get("evaluation_score") if isinstance(one, dict) else None
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise row.error(f"'{JUDGED}' must hold scores from 0 to 1, got {one!r:.80}")
        given[str(one.get("checklist_id"))] = float(score)
    missing = [number for number in range(len(item.checklist)) if str(number) not in given]
    if missing:
        raise row.error(f"item {missing[0]} of the checklist of {item.id!r} has no score: judge it again")
    return [given[str(number)] for number in range(len(item.checklist))]
