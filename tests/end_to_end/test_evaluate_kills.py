"""A campaign of kill −9 on the evaluation commands, wherever it hits them (make test-long)."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tests.end_to_end.benchmark_judge import scripted
from tests.end_to_end.evaluate_runs import judged_by, kill_when, run
from tests.support.files import write_jsonl
from tests.support.scripted_server import Scripted, serving
from tests.support.writing_bench import PUBLIC, write_benchmark

pytestmark = pytest.mark.long

KILLS = 6
CONCURRENCY = 4
COUNT = 60


def arguments(name: str, folder: Path) -> tuple[list[object], int]:
    """The command on inputs in `folder`, and how many questions it asks."""
    output = ("--output", folder / "out")
    if name == "writing-bench":
        rows = [{"index": query["index"], "response": f"Answer {query['index']}"} for query in PUBLIC["queries"]]
        responses = write_jsonl(folder / "r.jsonl", rows)
        benchmark = write_benchmark(folder / "wb")
        return [name, "--benchmark", benchmark, "--responses", responses, *output], 5 * len(rows)
    rows = [
        {"idx": n, "question": f"Task {n}", "length": 50, "baseline_response": "A plain text."} for n in range(COUNT)
    ]
    prompts = write_jsonl(folder / "p.jsonl", rows)
    responses = write_jsonl(folder / "r.jsonl", [{"idx": n, "response": f"word {n} " * 20} for n in range(COUNT)])
    asked = COUNT if name == "longbench-write" else 2 * COUNT
    return [name, "--prompts", prompts, "--responses", responses, *output], asked


@pytest.mark.parametrize("name", ["longbench-write", "writing-bench", "arena-write"])
def test_whatever_dies_no_reply_is_paid_twice_and_the_figures_are_those_of_an_undisturbed_run(name, tmp_path):
    argv, asked = arguments(name, tmp_path)
    moment = random.Random(name)
    server, whole = Scripted(scripted, delay=0.2), Scripted(scripted)
    with serving(server, whole):
        settings = judged_by(server, concurrency=CONCURRENCY)
        for kill in range(KILLS):  # some hit the start, before the first new question
            enough = moment.randrange((kill + 1) * asked // (KILLS + 1))
            end = time.monotonic() + (moment.uniform(0, 2) if kill < 2 else 0.0)
            kill_when([*argv, *settings], lambda e=enough, t=end: len(server.bodies) >= e and time.monotonic() > t)
        run([*argv, *settings])
        assert asked <= len(server.bodies) <= asked + KILLS * CONCURRENCY
        found = json.loads((tmp_path / "out" / f"{name.replace('-', '_')}.json").read_text())
        run([*argv[:-1], tmp_path / "whole", *judged_by(whole, concurrency=CONCURRENCY)])
    undisturbed = json.loads((tmp_path / "whole" / f"{name.replace('-', '_')}.json").read_text())
    assert len(whole.bodies) == asked
    for result in (found, undisturbed):
        del result["judge"]["counters"]
    assert found == undisturbed
