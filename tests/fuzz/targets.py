"""The parsers of outside data, each with examples of what it reads."""

from __future__ import annotations

import io
import json
import pickle
import random
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lwz.config import load_config
from megatron_lwz.config.hf_config import read_hf_architecture
from megatron_lwz.data.instructions import Rendering, find_fault, parse_conversation
from megatron_lwz.data.manifest import read_manifest
from megatron_lwz.data.preferences.formats import parse_pair
from megatron_lwz.data.preferences.rendering import load_rendering
from megatron_lwz.data.prompts import parse_prompt
from megatron_lwz.data.text.grammar import parse_response
from megatron_lwz.data.text.length_request import read_length
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.evaluation.longbench_write import read_quality
from megatron_lwz.evaluation.responses import read_responses
from megatron_lwz.evaluation.tasks import read_tasks
from megatron_lwz.evaluation.writing_bench import read_score
from megatron_lwz.http.retry import RequestFailure
from megatron_lwz.http.sse import EventParser
from megatron_lwz.models.hf import HfFolder
from megatron_lwz.reading import parse_json, scan_rows
from megatron_lwz.rewards import judge_prompts, length_judge
from megatron_lwz.rewards.judge_json import as_score, read_object
from megatron_lwz.rollout.chunks import ChunkReader
from megatron_lwz.rollout.engine.protocol import parse_request
from megatron_lwz.rollout.journal_check import check_journal
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.rollout.limits import read_load
from megatron_lwz.types import WeightVersion
from tests.fuzz import benchmarks, examples
from tests.fuzz.mutation import from_bytes, from_json
from tests.fuzz.run import Target


@cache
def folder() -> Path:
    """Returns an empty folder of this process, in memory where the system has one."""
    shared = Path("/dev/shm")
    place = tempfile.TemporaryDirectory(prefix="fuzz", dir=shared if shared.is_dir() else None)
    _kept.append(place)
    return Path(place.name)


_kept: list[Any] = []


def in_file(name: str, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Returns a parser of bytes that puts them into a file first."""

    def run(data: bytes) -> object:
        path = folder() / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return parse(path)

    return run


def rows(parse: Callable[[Any], object]) -> Callable[[bytes], object]:
    """Returns a parser of one JSONL line: as the readers do, JSON first, and only objects go on."""

    def run(data: bytes) -> object:
        value = parse_json(data.decode("utf-8"), "rows.jsonl", line=1)
        return parse(value) if isinstance(value, dict) else None

    return run


def text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """Returns a parser of any text."""
    return lambda data: parse(data.decode("utf-8", "replace"))


def _instruction(row: Any) -> object:
    return find_fault(parse_conversation(row, "r:1"), Rendering())


def _judge(said: str) -> None:
    found = read_object(said, ["score"])
    if found is not None:
        as_score(found["score"], 0, 10)
    readers = [judge_prompts.read_marks(2), judge_prompts.read_requirements(3), judge_prompts.read_degrees(2)]
    for read in (*readers, judge_prompts.read_winner, length_judge.read_length, read_quality, read_score):
        read(said)


def _stream(data: bytes) -> None:
    """Feeds the bytes in pieces whose sizes depend on them."""
    parser, reader = EventParser(max_event_bytes=4096), ChunkReader("http://engine", lambda _: WeightVersion(0, 0, ""))
    sizes = random.Random(len(data))
    at = 0
    while at < len(data):
        size = sizes.choice((1, 3, 64, 5000))
        list(reader.read(parser.feed(data[at : at + size])))
        at += size


def _safetensors(path: Path) -> None:
    weights = HfFolder(path.parent)
    for name in weights.names():
        weights.dtype(name)
        weights.check({name: (2, 3)})
        weights.read(name, (2, 3))


def _index(path: Path) -> None:
    (path.parent / "a.safetensors").write_bytes(examples.safetensors())
    _safetensors(path)


def _journal(path: Path) -> None:
    check_journal(path, 1)
    with closing(JournalReader(path)) as journal:
        list(journal.groups())
        list(journal.groups("evaluation"))
        list(journal.lengths())
        list(journal.texts(journal.scored()))
        journal.consumed(), journal.checkpoints(), journal.trained_order(1)


def _grammar(said: str) -> None:
    for template in ("think", "direct"):
        parsed = parse_response(said, template)  # type: ignore[arg-type]
        assert parsed.valid == (parsed.fault is None)


def _overrides(data: bytes) -> object:
    return load_config(None, data.decode("utf-8", "replace").split("\x01"))


def _indexed(path: Path) -> object:
    from megatron_lwz.data.indexed import IndexedPieces  # Megatron-Core takes seconds to import

    path.with_name("part.bin").write_bytes(np.arange(40, dtype=np.uint16).tobytes())
    pieces = IndexedPieces(path.with_name("part"), sequence_length=8, seed="0", shuffle=True)
    return [pieces[k] for k in range(min(len(pieces), 5))]


def _tokenizer(path: Path) -> object:
    (path.parent / "tokenizer.json").write_bytes(examples.tokenizer())
    return Tokenizer(path.parent).encode("a <|endoftext|> b")


def _unpickle(data: bytes) -> object:
    from megatron_lwz.training.safe_unpickle import RestrictedUnpickler

    return RestrictedUnpickler(io.BytesIO(data)).load()


_PICKLE = (Exception,)
"""Loading a checkpoint turns whatever the unpickler raises into one line. What must not happen is a call of a foreign name."""

PROMPT, ROW, PAIR, TASK = (
    ("prompt", "id", "length", "lower", "upper", "template"),
    examples.ROW_KEYS,
    examples.PAIR_KEYS,
    examples.TASK_KEYS,
)

TARGETS: Iterable[Target] = (
    Target("config", from_bytes(examples.CONFIGS, examples.CONFIG_WORDS), in_file("c/config.yaml", load_config)),
    Target("overrides", from_bytes(examples.OVERRIDES, examples.CONFIG_WORDS), _overrides),
    Target("rows", from_bytes(examples.row_files()), in_file("rows", lambda path: list(scan_rows(path)))),
    Target("prompts", from_json(examples.PROMPTS, PROMPT), rows(lambda r: parse_prompt(r, identity="r", maximum_length=9000)), (ValueError,)),
    Target("instructions", from_json(examples.ROWS, ROW), rows(_instruction), (ValueError,)),
    Target("pairs", from_json(examples.PAIRS, PAIR), rows(lambda row: parse_pair(row, "r:1")), (ValueError,)),
    Target("tasks", from_json(examples.TASKS, TASK), in_file("tasks.jsonl", read_tasks)),
    Target("responses", from_json(examples.RESPONSES, TASK), in_file("responses.jsonl", read_responses)),
    Target("judge", from_bytes(examples.JUDGEMENTS, examples.JUDGE_WORDS), text(_judge)),
    Target("stream", from_bytes(examples.STREAMS, examples.STREAM_WORDS), _stream, (ValueError, RequestFailure)),
    Target("requests", from_json(examples.REQUESTS, examples.REQUEST_KEYS), rows(parse_request), (ValueError,)),
    Target("safetensors", from_bytes([examples.safetensors()], examples.TENSOR_WORDS), in_file("w/model.safetensors", _safetensors)),
    Target("safetensors_index", from_json(examples.INDEXES, ("weight_map", "a", "b", "metadata")), in_file("x/model.safetensors.index.json", _index)),
    Target("hf_config", from_json(examples.HF_CONFIGS, tuple(examples.HF_CONFIGS[0])), in_file("h/config.json", lambda path: read_hf_architecture(path.parent))),
    Target("tokenizer_config", from_json(examples.TOKENIZER_CONFIGS, ("eos_token", "pad_token", "content")), in_file("t/tokenizer_config.json", _tokenizer)),
    Target("rendering", from_json(examples.RENDERINGS, ("template", "thinking", "end")), in_file("r/reward_model.json", lambda path: load_rendering(path.parent))),
    Target("manifest", from_json(examples.MANIFESTS, tuple(examples.MANIFESTS[0])), in_file("m/manifest.json", read_manifest)),
    Target("index", from_bytes([examples.index()]), in_file("i/part.idx", _indexed)),
    Target("journal", from_bytes([examples.journal()], examples.JOURNAL_WORDS), in_file("j/journal.sqlite", _journal)),
    Target("unpickle", from_bytes([examples.metadata(), pickle.dumps({"a": [1, 2.0, "x"]})]), _unpickle, _PICKLE),
    Target("grammar", from_bytes(examples.REPLIES, examples.REPLY_WORDS), text(_grammar)),
    Target("lengths", from_bytes(examples.LENGTHS, examples.LENGTH_WORDS), text(read_length)),
    Target("load", from_bytes(examples.METRICS), text(read_load)),
    *benchmarks.targets(in_file),
)  # fmt: skip
"""All targets, in the order in which they run."""


def find(name: str) -> Target:
    """Returns a target by its name."""
    return next(target for target in TARGETS if target.name == name)


def as_text(data: bytes) -> str:
    """Returns an input for a log."""
    return json.dumps(data.decode("utf-8", "replace"))[:400]
