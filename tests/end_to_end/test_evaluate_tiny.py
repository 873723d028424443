"""All three benchmarks with a tiny policy as the writer, and the same embedded engine as a judge that talks nonsense."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from megatron_lwz.cli import evaluate_engine
from tests.end_to_end.evaluate_runs import lwz
from tests.engine_model import write_engine_model
from tests.unit.evaluation.test_writing_bench import PUBLIC, write, write_benchmark


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[str]:
    """The URL of the engine; its token is in both variables."""
    folder = tmp_path_factory.mktemp("model")
    write_engine_model(folder)
    with evaluate_engine.serving(folder, folder / "engine.log", slots=8, dtype="fp32", threads=1) as server:
        before = dict(os.environ)
        os.environ.update(LWZ_ENGINE_TOKEN=server.token or "", LWZ_JUDGE_KEY=server.token or "")
        yield server.url
        os.environ.clear()
        os.environ.update(before)


def test_a_tiny_policy_is_evaluated_and_a_nonsense_judge_survived(engine, tmp_path, capsys):
    served = (
        "--url",
        engine,
        "--served-model",
        "policy",
        "--template",
        "direct",
        "--style",
        "bare",
        "--max-tokens",
        24,
    )
    judge = (f"judge.url={engine}", "judge.model=policy", "judge.api=completions", "judge.max_tokens=8")
    judge = (*judge, "judge.temperature=1.0", "judge.malformed_retries=1")
    long_rows = [{"prompt": f"Task {n}", "type": "t", "length": 20} for n in range(3)]
    arena_rows = [{"idx": n, "question": f"Task {n}", "length": 20, "baseline_response": "A text."} for n in range(3)]
    benchmark = write_benchmark(tmp_path / "wb")
    prompts = {
        "longbench-write": write(tmp_path / "longbench_write.jsonl", long_rows),
        "writing-bench": write(tmp_path / "queries.jsonl", PUBLIC["queries"][:2]),
        "arena-write": write(tmp_path / "arena.jsonl", arena_rows),
    }
    for name, path in prompts.items():
        assert lwz("generate", path, "--output", tmp_path / f"{name}.r.jsonl", *served, "--top-k", 0) == 0
        assert lwz("text", tmp_path / f"{name}.r.jsonl", "--output", tmp_path / name) == 0
        text = json.loads((tmp_path / name / "text.json").read_text())
        assert text["metrics"]["format_valid"]["count"] == len(path.read_text().splitlines())
    capsys.readouterr()
    for name, where in (
        ("longbench-write", "--prompts"),
        ("writing-bench", "--benchmark"),
        ("arena-write", "--prompts"),
    ):
        source = benchmark if name == "writing-bench" else prompts[name]
        status = lwz(
            name, where, source, "--responses", tmp_path / f"{name}.r.jsonl", "--output", tmp_path / name, *judge
        )
        out, err = capsys.readouterr()
        assert "without a verdict (malformed)" in out
        if name == "longbench-write":
            assert status == 0 and "length score S_l" in out
            found = json.loads((tmp_path / name / "longbench_write.json").read_text())
            assert found["unjudged"] == 3 and found["judge"]["counters"]["malformed"] == 6
        else:
            assert status == 2 and [line for line in err.splitlines() if line.startswith("error: ")], err
