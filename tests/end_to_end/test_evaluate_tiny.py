"""All three benchmarks with a tiny policy as the writer; judges: the same embedded engine, which talks nonsense, and a
scripted one over HTTP with planted preferences and a liking for the first place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_lwz.cli import evaluate_engine
from megatron_lwz.evaluation.bradley_terry import ELO
from tests.end_to_end.benchmark_judge import BASELINE, BIAS, STRENGTH, scripted
from tests.end_to_end.evaluate_runs import judged_by, lwz
from tests.support.engine_model import write_engine_model
from tests.support.files import write_jsonl
from tests.support.scripted_server import KEY, Scripted, serving
from tests.support.stages import forked
from tests.support.writing_bench import PUBLIC, write_benchmark

ARENA = 80


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[str]:
    """The URL of the engine; its token is in both variables."""
    folder = tmp_path_factory.mktemp("model")
    write_engine_model(folder)
    how = {"slots": 16, "dtype": "fp32", "threads": 1}
    with forked(), evaluate_engine.serving(folder, folder / "engine.log", **how) as server:
        before = dict(os.environ)
        os.environ.update(LWZ_ENGINE_TOKEN=server.token or "", LWZ_JUDGE_KEY=server.token or "", SCRIPTED_KEY=KEY)
        yield server.url
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def written(engine, tmp_path_factory) -> Path:
    """A folder with the prompts of every benchmark and the tiny policy's responses to them, `NAME.r.jsonl`."""
    folder = tmp_path_factory.mktemp("written")
    write_benchmark(folder / "wb")
    arena = [{"idx": n, "question": f"Task {n}", "length": 20, "baseline_response": BASELINE} for n in range(ARENA)]
    write_jsonl(folder / "arena-write.jsonl", arena)
    write_jsonl(
        folder / "longbench-write.jsonl", [{"prompt": f"Task {n}", "type": "t", "length": 20} for n in range(3)]
    )
    write_jsonl(folder / "writing-bench.jsonl", PUBLIC["queries"][:2])
    how = ("--url", engine, "--served-model", "policy", "--template", "direct", "--style", "bare", "--max-tokens", 12)
    for path in sorted(folder.glob("*.jsonl")):
        assert lwz("generate", path, "--output", path.with_suffix(".r.jsonl"), *how, "--top-k", 0) == 0
    return folder


def evaluate(name: str, written: Path, output: Path, *settings: str) -> int:
    source = ("--benchmark", written / "wb") if name == "writing-bench" else ("--prompts", written / f"{name}.jsonl")
    return lwz(name, *source, "--responses", written / f"{name}.r.jsonl", "--output", output / name, *settings)


def result(output: Path, name: str) -> dict:
    return json.loads((output / name / f"{name.replace('-', '_')}.json").read_text())


def test_the_policy_is_measured_without_a_judge(written, tmp_path):
    for path in written.glob("*.r.jsonl"):
        assert lwz("text", path, "--output", tmp_path / path.stem) == 0
        text = json.loads((tmp_path / path.stem / "text.json").read_text())
        assert text["metrics"]["format_valid"]["count"] == len(path.read_text().splitlines())


def test_a_nonsense_judge_is_survived(engine, written, tmp_path, capsys):
    judge = (f"judge.url={engine}", "judge.model=policy", "judge.api=completions", "judge.max_tokens=8")
    judge = (*judge, "judge.temperature=1.0", "judge.malformed_retries=1")
    few = shutil.copytree(written, tmp_path / "few")  # the policy reads each judge's prompt: seconds for all of them
    for path, key in ((few / "arena-write.jsonl", "idx"), (few / "arena-write.r.jsonl", "id")):
        rows = [
            json.loads(line) for line in path.read_text().splitlines()
        ]  # responses stand in the order of their ends
        write_jsonl(path, [row for row in rows if int(row[key]) < 8])
    for name in ("longbench-write", "writing-bench", "arena-write"):
        status = evaluate(name, few, tmp_path, *judge)
        out, err = capsys.readouterr()
        assert "without a verdict (malformed)" in out, (name, status, err)
        if name == "longbench-write":
            assert status == 0 and "length score S_l" in out
            found = result(tmp_path, name)
            assert found["unjudged"] == 3 and found["judge"]["counters"]["malformed"] == 6
        else:
            assert status == 2 and [line for line in err.splitlines() if line.startswith("error: ")], err


def test_a_scripted_judge_is_recovered(written, tmp_path):
    server = Scripted(scripted)
    with serving(server):
        for name in ("longbench-write", "writing-bench", "arena-write"):
            judge = [*judged_by(server, concurrency=8), "judge.api_key_env=SCRIPTED_KEY"]
            assert evaluate(name, written, tmp_path, *judge) == 0
    assert result(tmp_path, "longbench-write")["metrics"]["s_q"]["value"] == 75
    assert result(tmp_path, "writing-bench")["metrics"]["Overall"]["value"] == 8
    found = result(tmp_path, "arena-write")
    assert found["games"] == 2 * ARENA and found["incomplete"] == 0
    policy = found["metrics"]["Elo"]
    assert policy["low"] <= 1000 + ELO * STRENGTH <= policy["high"] < 1000
    bias = found["bias"]["first_place_elo"]
    assert 0 < bias["low"] <= ELO * BIAS <= bias["high"]
