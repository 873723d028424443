"""Every reader of rows takes every form in which people give them, and refuses the same faults with file and line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz import reading
from megatron_lwz.config import validate
from megatron_lwz.data.corpora import units
from megatron_lwz.data.corpora.spec import SourceSpec
from megatron_lwz.data.corpus import read_texts
from megatron_lwz.data.prompts import read_prompts
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.responses import read_responses
from megatron_lwz.evaluation.tasks import read_tasks
from megatron_lwz.training.token_logprobs import read_rows
from tests.support.foreign import BROKEN, FORMS, UNREADABLE, Rows, lines

TEXTS = ["stone\u2028river", "山水 – 风云"]
SOURCE = SourceSpec(name="s", paths=("rows",), format="jsonl")


def read_units(path: Path, unit_bytes: int) -> list[str]:
    """Reads as the preparation of a corpus does, in units of `unit_bytes`."""
    found = [text for unit in units.cut(0, "jsonl", [path], unit_bytes) for text in units.read(unit, SOURCE)]
    for text in found:
        if isinstance(text, DataError):
            raise text
    return found


def read_tokens(path: Path) -> list[tuple[int, ...]]:
    return [row.tokens for row in read_rows(path, validate({"model": {"preset": "qwen2.5-0.5b"}}))]


@dataclass(frozen=True)
class Reader:
    """Rows for a reader, and what it finds in them."""

    rows: Rows
    read: Callable[[Path], Any]
    found: Any


LENGTH = {"lower": 10, "upper": 20}
READERS = {
    "prompts": Reader(
        [{"id": str(n), "prompt": text, "length": LENGTH} for n, text in enumerate(TEXTS)],
        lambda path: [(prompt.text, vars(prompt.length)) for prompt in read_prompts(path)],
        [(text, LENGTH) for text in TEXTS],
    ),
    "tasks": Reader(
        [{"idx": n, "question": text, "length": 30 * n} for n, text in enumerate(TEXTS)],
        lambda path: [(task.id, task.prompt, task.length and task.length.upper) for task in read_tasks(path)],
        [("0", TEXTS[0], None), ("1", TEXTS[1], 30)],
    ),
    "responses": Reader(
        [{"query": "Write.", "response": text, "length": None} for text in TEXTS],
        lambda path: [(response.prompt, response.text) for response in read_responses(path)],
        [("Write.", text) for text in TEXTS],
    ),
    "corpus": Reader([{"text": text} for text in TEXTS], lambda path: list(read_texts(path)), TEXTS),
    "corpus in one unit": Reader([{"text": text} for text in TEXTS], lambda path: read_units(path, 10**6), TEXTS),
    "corpus in small units": Reader([{"text": text} for text in TEXTS], lambda path: read_units(path, 20), TEXTS),
    "tokens": Reader(
        [{"id": "a", "tokens": [1, 2, 3], "prompt_length": 1}, {"id": "b", "tokens": [4, 5], "prompt_length": 1}],
        read_tokens,
        [(1, 2, 3), (4, 5)],
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", READERS)
def test_every_form_is_read_and_nothing_of_it_is_lost(tmp_path: Path, name: str, form: str) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    reader, path = READERS[name], tmp_path / "rows"
    path.write_bytes(FORMS[form](reader.rows))
    assert reader.read(path) == reader.found


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("name", READERS)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, name: str, fault: str) -> None:
    reader, path, (line, said) = READERS[name], tmp_path / "rows", BROKEN[fault]
    first, second = lines(reader.rows).splitlines()
    path.write_bytes(first + b"\n\n" + line + b"\n" + second + b"\n")
    where = f"byte {len(first) + 2}" if name == "corpus in small units" else "line 3"
    assert refusal(reader, path).startswith(f"{path}, {where}: ") and said in refusal(reader, path)


@pytest.mark.parametrize("fault", UNREADABLE)
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, fault: str) -> None:
    if "parquet" in fault:
        pytest.importorskip("pyarrow")
    reader, path, (write, said) = READERS[name], tmp_path / "rows", UNREADABLE[fault]
    path.write_bytes(write(reader.rows))
    assert refusal(reader, path).startswith(str(path)) and said in refusal(reader, path)


@pytest.mark.parametrize("name", READERS)
def test_a_file_without_line_ends_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in (reading, units):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 120)
    reader, path = READERS[name], tmp_path / "rows"
    path.write_bytes(lines(reader.rows[:1]) + b" " * 1000)
    assert "is longer than" in refusal(reader, path)


@pytest.mark.parametrize("name", READERS)
def test_missing_and_empty_files_are_named(tmp_path: Path, name: str) -> None:
    reader, path = READERS[name], tmp_path / "rows"
    for missing in (path, tmp_path):
        assert refusal(reader, missing).startswith(f"{missing}: cannot be read (")
    path.write_bytes(b"\xef\xbb\xbf\n \n")
    if name in ("prompts", "tasks", "responses"):
        assert "in this file" in refusal(reader, path)
    else:
        assert reader.read(path) == []


def refusal(reader: Reader, path: Path) -> str:
    """The one line that says why a file is refused."""
    with pytest.raises(DataError) as caught:
        reader.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)
