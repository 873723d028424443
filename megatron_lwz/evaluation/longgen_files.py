"""Reads LongGenBench's public files unchanged: prompts with checks, the judge's question, outputs with verdicts.

mozhu621/LongGenBench (2409.02076), once SGT: long documents of numbered entries (weeks, floors, menus, blocks), some of which
must contain something.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.judge_prompts import digest
from megatron_lwz.evaluation.responses import read_responses
from megatron_lwz.evaluation.tasks import Task, read_tasks
from megatron_lwz.reading import read_rows, read_text
from megatron_lwz.rewards.judge_client import Question, mark

KINDS = ("once", "range", "periodic")
"""The three kinds of checks: of one entry, of a range of entries, of every n-th entry."""
SEPARATOR = "#*#"
BLOCKS = "output_blocks"
_MOST_ENTRIES = 100_000
"""Of a document. More are no document, and every entry takes memory."""


@dataclass(frozen=True)
class Check:
    """What one entry must contain. `number` is that of the entry, from 1."""

    kind: str
    number: int
    event: str


@dataclass(frozen=True)
class Document:
    """A prompt: so many entries (`number`) called `name` 1, 2, …, and the checks on them. `prefix` begins the first one."""

    id: str
    prompt: str
    name: str
    number: int
    prefix: str
    checks: Sequence[Check]


@dataclass(frozen=True)
class Written:
    """A response: its entries by number (the first one of each number), its words, and verdicts that its file holds."""

    id: str
    sample: int
    entries: Mapping[int, str]
    words: int
    verdicts: Mapping[Check, bool] | None = None


def read_documents(path: Path) -> dict[str, Document]:
    """Reads Dataset_short.json or Dataset_long.json; the id is the position in it. Raises DataError."""
    found = {}
    for task in read_tasks(path):
        try:
            found[task.id] = _document(task)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                path, f"not a prompt of LongGenBench ({error!r})", line=task.line, unit=task.unit
            ) from error
    return found


def read_written(path: Path, documents: Mapping[str, Document]) -> list[Written]:
    """Reads responses: rows with `response`, or an output file of the public scripts, which may hold verdicts.

    Raises DataError.
    """
    rows = iter(read_rows(path))
    first = next(rows, None)
    if first is None:
        raise DataError(path, "no responses in this file")
    if BLOCKS in first.value:
        return _read_outputs(path, documents)
    tasks = [Task(d.id, d.prompt, None, {}) for d in documents.values()]
    found = []
    for response in read_responses(path, tasks):
        document = documents.get(response.id)
        if document is None:
            raise DataError(
                path, f"response {response.id!r} answers no prompt of the dataset: are these its responses?"
            )
        found.append(Written(response.id, response.sample, *_entries(document, response.text)))
    return found


def read_template(path: Path) -> str:
    """Reads the public judge's question from eval.py, parsed and never executed, with {entry} and {event} to be filled.

    Raises DataError.
    """
    try:
        for node in ast.walk(ast.parse(read_text(path))):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id == "prompt"
            ):
                template = "".join(_pieces(node.value))
                if "{entry}" in template and "{event}" in template:
                    return template
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(path, f"not LongGenBench's eval.py ({error!r})") from error
    raise DataError(path, "not LongGenBench's eval.py: no question about an entry and an event in it")


def check_question(entry: str, event: str, template: str | None) -> Question:
    """Returns the question whether an entry contains something. `template` is the public one; without it, it is ours."""
    if template is not None:
        parts = {"{entry}": entry, "{event}": event}
        asked = re.sub(r"\{entry\}|\{event\}", lambda found: parts[found.group()], template)
        return Question(asked, f"longgen-bench@{digest(template)}")
    asked = (
        f"Here is one entry of a long document:\n\n{mark(entry)}\n\nIt was asked to contain this:\n\n{mark(event)}\n\n"
        "Does the entry contain it, in whatever words? The heading alone does not count. Answer yes or no, and nothing else."
    )
    return Question(asked, "lwz-contains-1")


def read_answer(reply: str) -> bool | None:
    """Returns whether a reply says yes, as the public script reads it; None for one that says neither yes nor no."""
    said = reply.rpartition("</think>")[2].lower()
    return True if "yes" in said else False if re.search(r"\bno\b", said) else None


def _document(task: Task) -> Document:
    row = task.row
    checks = []
    for kind in KINDS:
        for number, event in row[f"checks_{kind}"].items():
            if not isinstance(event, str) or int(number) < 1:
                raise ValueError(f"checks_{kind} of {number!r}")
            checks.append(Check(kind, int(number), event))
    number = row["number"]
    if (
        type(number) is not int
        or not 1 <= number <= _MOST_ENTRIES
        or not isinstance(row["type"], str)
        or not row["type"]
    ):
        raise ValueError(f"number or type: 1 to {_MOST_ENTRIES} entries, with a name")
    return Document(task.id, task.prompt, row["type"], number, str(row.get("prefix") or ""), checks)


def _entries(document: Document, text: str) -> tuple[dict[int, str], int]:
    """Returns the entries of a text by number, and its words.

    The prompt ends with the heading of the first entry, which a text may continue or repeat.
    """
    begins = re.search(rf"{re.escape(document.name)} (\d+)", text.partition(SEPARATOR)[0] or text)
    whole = text if text.lstrip().startswith(SEPARATOR) or begins else document.prefix + text
    return split_entries(document, whole.split(SEPARATOR)), len(text.split())


def split_entries(document: Document, blocks: Sequence[str]) -> dict[int, str]:
    """Returns the first block of each number, as the public script does."""
    found: dict[int, str] = {}
    for block in blocks:
        if match := re.search(rf"{re.escape(document.name)} (\d{{1,9}})", block):
            found.setdefault(int(match[1]), block)
    return found


def _read_outputs(path: Path, documents: Mapping[str, Document]) -> list[Written]:
    by_prompt = {document.prompt.strip(): document for document in documents.values()}
    found = []
    for row in read_rows(path):
        document = by_prompt.get(str(row.value.get("input")).strip())
        blocks = row.value.get(BLOCKS)
        if document is None:
            raise row.error("its 'input' is no prompt of the dataset: are these its outputs?")
        if not isinstance(blocks, list) or not all(isinstance(block, str) for block in blocks):
            raise row.error(f"'{BLOCKS}' must be a list of texts")
        try:
            verdicts = _verdicts(document, row.value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise row.error(f"'results_…' must map numbers of entries to yes or no ({error!r})") from error
        words = sum(len(block.split()) for block in blocks)
        found.append(Written(document.id, 0, split_entries(document, blocks), words, verdicts))
    return found


def _verdicts(document: Document, row: Mapping[str, Any]) -> dict[Check, bool] | None:
    if all(row.get(f"results_{kind}") is None for kind in KINDS):
        return None
    found = {}
    for check in document.checks:
        said = row[f"results_{check.kind}"].get(str(check.number))
        if said not in ("yes", "no", None):
            raise ValueError(said)
        if said is not None:
            found[check] = said == "yes"
    return found


def _pieces(node: ast.expr) -> list[str]:
    """Returns the parts of an expression of joined texts; what stands for the entry or the event becomes its name."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_pieces(node.left), *_pieces(node.right)]
    if isinstance(node, ast.JoinedStr):
        return [piece for part in node.values for piece in _pieces(part)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.FormattedValue):
        return ["{event}"]
    return ["{entry}"]
