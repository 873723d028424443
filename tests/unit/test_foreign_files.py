"""Files in the shapes that people publish (tests/data/foreign): every reader reads all of their text, or refuses them.

`expected.yaml` says for each file what each reader finds. A reader that is not listed there refuses the file, or finds
none of its rows usable. The content stays the same in every container and encoding.
"""

from __future__ import annotations

import logging
import runpy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_lwz.cli import common
from megatron_lwz.config import Config, validate
from megatron_lwz.data.corpus import read_texts
from megatron_lwz.data.instructions import Conversation, Rendering, find_fault, read_conversations
from megatron_lwz.data.preferences.formats import read_pairs
from megatron_lwz.data.preferences.pairs import PreferencePair
from megatron_lwz.data.preparation.sources import Source, read_sources
from megatron_lwz.data.prompts import read_prompts
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.responses import read_responses
from megatron_lwz.evaluation.tasks import read_tasks
from megatron_lwz.reading import read_rows
from megatron_lwz.training.reward_model import build_task
from megatron_lwz.training.sft import build_source
from tests.support.engine_model import write_engine_model
from tests.support.foreign import FORMS

FOREIGN = Path(__file__).resolve().parents[1] / "data" / "foreign"
FILES = sorted(path.relative_to(FOREIGN).as_posix() for path in FOREIGN.rglob("*.json*"))
EXPECTED = yaml.safe_load((FOREIGN / "expected.yaml").read_text(encoding="utf-8"))


def _conversation(found: Conversation) -> list[Any]:
    said = [text for turn in zip(found.asked, found.replies, strict=True) for text in turn]
    untrained = [f"(not trained: {find_fault(found, Rendering())})"] if find_fault(found, Rendering()) else []
    return [*said, *([{"trained": list(found.trained)}] if found.trained else []), *untrained]


def _pair(found: PreferencePair | str) -> Any:
    if isinstance(found, str):
        return found
    return [found.prompt, found.chosen, found.rejected, *([found.margin] if found.margin is not None else [])]


READERS: Mapping[str, Callable[[Path], list[Any]]] = {
    "sft": lambda path: [_conversation(found) for found in read_conversations(path)],
    "pairs": lambda path: [_pair(found) for found in read_pairs(path)],
    "requests": lambda path: [found.text if isinstance(found, Source) else found for found in read_sources(path)],
    "prompts": lambda path: [found.text for found in read_prompts(path)],
    "tasks": lambda path: [
        [found.prompt, *([found.length.lower] if found.length else [])] for found in read_tasks(path)
    ],
    "responses": lambda path: [found.text for found in read_responses(path)],
    "texts": lambda path: list(read_texts(path)),
}


TOOLS = {
    tool: runpy.run_path(str(FOREIGN.parents[2] / "tools" / tool))["main"]
    for tool in ("make_preference_pairs.py", "prepare_prompts.py")
}


def _rows(name: str, reader: str) -> list[Any]:
    found = EXPECTED[name].get(reader)
    return found if isinstance(found, list) else []


def _config(tokenizer: Path, tree: dict[str, Any]) -> Config:
    model = {"hf": str(tokenizer)}
    return validate({"model": model, "training": {"sequence_length": 4096}, **tree})


@pytest.fixture(autouse=True)
def no_stale_log() -> Iterator[None]:
    """Removes the log handlers of `common.run`, whose streams end with the test."""
    yield
    logging.getLogger("megatron_lwz").handlers.clear()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_engine_model(folder)
    return folder


def test_every_file_has_expectations() -> None:
    assert sorted(EXPECTED) == FILES
    assert {reader for found in EXPECTED.values() for reader in found} <= set(READERS)


@pytest.mark.parametrize("name", FILES)
def test_a_reader_finds_all_of_the_text_or_refuses_the_file_by_name(name: str) -> None:
    for reader, read in READERS.items():
        expected = EXPECTED[name].get(reader)
        try:
            found = read(FOREIGN / name)
        except DataError as error:
            said = str(error)
            assert isinstance(expected, str | None), f"{reader}: {said}"
            assert said.startswith(str(FOREIGN / name)) and "\n" not in said
            assert expected is None or expected in said, reader
        else:
            assert found == expected, reader


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("supervised", "pairs", "requests"))])
def test_stages_and_tools_use_what_the_readers_find(
    name: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = str(FOREIGN / name), tmp_path / "out"
    usable = [row for row in _rows(name, "sft") if not str(row[-1]).startswith("(not trained")]
    pairs = [row for row in _rows(name, "pairs") if isinstance(row, list)]
    stages: dict[str, tuple[Callable[[], int], int]] = {
        "SFT": (lambda: len(build_source(_config(tokenizer, {"data": {"instructions": [path]}}))), len(usable)),
        "reward model": (
            lambda: len(build_task(_config(tokenizer, {"reward_model": {"pairs": [path]}})).source), len(pairs)
        ),
    }  # fmt: skip
    for stage, (build, expected) in stages.items():
        try:
            assert build() == expected, stage
        except DataError as error:
            assert expected == 0 and path in str(error) and "\n" not in str(error), stage
    tools: dict[str, tuple[list[str], list[Any]]] = {
        "make_preference_pairs.py": (["--pairs", path, "--out", str(out), "--held-out", "0"], pairs),
        "prepare_prompts.py": (
            ["--input", path, "--output", str(out / "p.jsonl"), "--rules-only"],
            _rows(name, "requests"),
        ),
    }
    for tool, (arguments, expected_rows) in tools.items():
        status = common.run(TOOLS[tool], arguments)
        printed = capsys.readouterr().err
        assert status == (0 if expected_rows else common.USER_ERROR), f"{tool}: {printed}"
        assert "Traceback" not in printed and (status == 0 or (printed.count("\n") == 1 and path in printed)), tool


@pytest.mark.parametrize("form", FORMS)
def test_the_content_does_not_depend_on_the_container(form: str, tmp_path: Path) -> None:
    for name, reader in {
        "supervised/alpaca.json": "sft",
        "pairs/hh.jsonl": "pairs",
        "requests/wildchat.jsonl": "requests",
        "requests/longbench_write.jsonl": "tasks",
        "responses/longwriter.jsonl": "responses",
        "corpora/dolma.jsonl": "texts",
    }.items():
        path = tmp_path / Path(name).name
        path.write_bytes(FORMS[form]([row.value for row in read_rows(FOREIGN / name)]))
        assert READERS[reader](path) == EXPECTED[name][reader], name
