"""What a run must have kept, whatever happened to it: each function returns what is wrong, nothing if all is well."""

from __future__ import annotations

import hashlib
import math
import sqlite3
from contextlib import closing
from pathlib import Path

from megatron_lwz.http.retry import Failure
from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.run_paths import RunPaths
from tests.support.journal_checks import assert_every_token_once, trained

Durable = dict[tuple[int, int], bytes]
"""(group, rollout) → its tokens and log-probs that are on disk."""
NOT_COMPARED = (
    "seconds", "tokens_per_second", "flops_per_second", "mfu", "rollout/total", "rollout/engine", "rollout/concurrency", "rollout/kv",
    "rollout/waiting", "rollout/mixed", "writing/", "rollout/token_staleness", "length/waiting",
)  # fmt: skip
"""Beginnings of metrics that tell of this process and its clock, not of what was trained."""
MASKED = tuple(f"writing/masked/{kind.value}" for kind in Failure)
"""Metrics that count scores which are missing since their server failed for too long."""
TOLERANCE = 2e-5
"""Relative difference of losses and gradient norms that another layout may make (fp32)."""


def durable(journal: Path) -> Durable | None:
    """Reads the journal as a start would find it. Nothing where there is none yet; None while its writer holds it."""
    found: Durable = {}
    if journal.exists():
        with closing(sqlite3.connect(f"{journal.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
            try:
                rows = db.execute(
                    "SELECT group_id, rollout, tokens, logprobs FROM deltas ORDER BY 1, 2, start"
                ).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    return None
                rows = []
        for group, rollout, tokens, logprobs in rows:
            found[group, rollout] = found.get((group, rollout), b"") + _interleaved(tokens, logprobs)
    return found


def _interleaved(tokens: bytes, logprobs: bytes) -> bytes:
    """One token's bytes and its log-prob's after the other, so that a prefix of tokens is a prefix of bytes."""
    pairs = range(0, len(tokens), 4)
    return b"".join(tokens[at : at + 4] + logprobs[at : at + 4] for at in pairs)


def tokens_in(found: Durable) -> int:
    return sum(len(content) // 8 for content in found.values())


def lost_tokens(before: Durable, after: Durable) -> int:
    """Tokens that were on disk and are not any more, or are others."""
    lost = 0
    for name, content in before.items():
        now = after.get(name, b"")
        same = 0
        while same < len(content) and content[same : same + 8] == now[same : same + 8]:
            same += 8
        lost += (len(content) - same) // 8
    return lost


def compare(run: Path, undisturbed: Path, *, exactly: bool) -> list[str]:
    """Everything that a disturbed run that has ended must have in common with the undisturbed one."""
    paths, model = RunPaths(run), RunPaths(undisturbed)
    wrong = [*_left_over(run), *_journal(paths.journal, model.journal), *_metrics(paths, model, exactly=exactly)]
    if exactly:
        wrong += _weights(paths, model)
    return wrong


def _left_over(run: Path) -> list[str]:
    odd = [path for path in run.rglob("*") if path.name.endswith((".tmp", ".old")) or ".damaged" in path.name]
    return [f"left over: {path.relative_to(run)}" for path in odd]


def _journal(journal: Path, expected: Path) -> list[str]:
    wrong = []
    try:
        assert_every_token_once(journal)
    except AssertionError as error:
        wrong.append(f"journal: tokens with a gap or twice: {error}")
    if trained(journal) != trained(expected):
        wrong.append("journal: other rollouts were trained on, or at other steps")
    with JournalReader(journal) as reader, JournalReader(expected) as model:
        if reader.consumed() != model.consumed():
            wrong.append(f"journal: groups by step {reader.consumed()}, undisturbed {model.consumed()}")
    return wrong


def _metrics(run: RunPaths, undisturbed: RunPaths, *, exactly: bool) -> list[str]:
    rows, expected = read_metrics(run.metrics), read_metrics(undisturbed.metrics)
    if [row["step"] for row in rows] != [row["step"] for row in expected]:
        return [f"metrics.jsonl: steps {[int(row['step']) for row in rows]}"]
    wrong = []
    wrong += [f"step {row['step']}: {name} = {row[name]}" for row in rows for name in row if name.startswith(MASKED)]
    for row, other in zip(rows, expected, strict=True):
        names = (row.keys() | other.keys()) if exactly else {"loss", "grad_norm"}
        for name in sorted(name for name in names if not name.startswith(NOT_COMPARED)):
            found, model = row.get(name), other.get(name)
            if not _equal(found, model, exactly=exactly):
                wrong.append(f"step {row['step']}: {name} = {found}, undisturbed {model}")
    return wrong[:3]


def _equal(found: float | None, expected: float | None, *, exactly: bool) -> bool:
    if found is None or expected is None or exactly:
        return found == expected or (found is not None and expected is not None and found != found != expected)
    return math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE / 10)


def _weights(run: RunPaths, undisturbed: RunPaths) -> list[str]:
    """Weights, masters, moments and random states of the last checkpoint, bit for bit."""
    name = undisturbed.latest.read_text()
    files = ("*.distcp", "common.pt", "random_*", "state.json")
    wrong = []
    for pattern in files:
        for path in sorted((undisturbed.checkpoints / name).glob(pattern)):
            other = run.checkpoints / name / path.name
            if not other.exists() or _digest(other) != _digest(path):
                wrong.append(f"{name}/{path.name} is not that of the undisturbed run")
    return wrong


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
