"""Any stage starts from any stage: base → SFT → GRPO → distil → continual pretraining → GRPO → evaluation, layouts changing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_lwz.cli import common, main
from megatron_lwz.data.manifest import read_manifest
from megatron_lwz.metrics import read_metrics
from tests.support.grpo_runs import write_example
from tests.support.ranks import run_ranks
from tests.support.stages import ROOT, variables

pytestmark = pytest.mark.long

REPLY = "<think> w1 w2 </think><answer> w3 w4 w5 w3 w4 w5 </answer>"
WORDS = ["<think>", "</think>", "<answer>", "</answer>", "<|user|>", "<|assistant|>", *(f" w{n}" for n in range(6))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One config for all stages, prompts whose one good reply is easy to learn, and texts around it."""
    folder = tmp_path_factory.mktemp("chain")
    write_example(
        folder,
        words=WORDS,
        training={
            "steps": 40, "prompts_per_step": 2, "sequences_per_step": 8, "sequence_length": 128,
            "tokens_per_micro_batch": 512,
        },
        data={
            "corpus": [str(folder / "corpus.jsonl")], "instructions": [str(folder / "rows.jsonl")],
            "validation": {}, "held_out_prompts": None,
        },
        optimizer={"lr": 1e-2, "schedule": "cosine", "warmup_steps": 3},
        checkpoint={"interval": 0},
        rollout={"max_new_tokens": 40},
        sft={"separator": ""},
    )  # fmt: skip
    prompts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    rows = [{"prompt": prompt, "response": REPLY} for prompt in prompts]
    texts = [{"text": f"{prompt} w{n} w{n + 1}"} for prompt in prompts for n in range(5)]
    for name, lines in (("rows", rows), ("corpus", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, dict[str, str]]:
    config = str(folder / "config.yaml")
    first, second = run_ranks("tests.end_to_end.chain_stages:chain", ranks=2, timeout=420.0, config=config)
    assert first == second
    return first


@pytest.mark.parametrize(("stage", "before"), [("sft", "base"), ("think", "sft"), ("cpt", "think"), ("final", "cpt")])
def test_a_stage_starts_with_what_the_one_before_left_at_another_layout(
    found: dict[str, dict[str, str]], stage: str, before: str
) -> None:
    assert found[stage]["start"] == found[before]["end"] != found[stage]["end"]
    assert found[stage]["layout"] != found[before]["layout"]


def test_the_corpus_holds_one_percent_of_the_runs_thinking(folder: Path, found: dict[str, Any]) -> None:
    sources = {source.name: source for source in read_manifest(folder / "corpus").sources}
    assert sources["thoughts"].weight == pytest.approx(0.01) and sources["thoughts"].train.documents > 0
    rows = read_metrics(folder / "cpt" / "evaluation.jsonl")
    assert "validation/texts" in rows[0] and rows[-1]["validation/texts"] < rows[0]["validation/texts"]


def test_the_last_run_is_evaluated(folder: Path, found: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    responses, output = folder / "evaluation" / "responses.jsonl", folder / "evaluation"
    generate = ["evaluate", "generate", str(folder / "prompts.jsonl"), "--output", str(responses)]
    generate += ["--model", str(folder / "final"), "--style", "bare", "--max-tokens", "40", "--threads", "1"]
    assert common.run(main.dispatch, generate) == 0, capsys.readouterr().err
    assert common.run(main.dispatch, ["evaluate", "text", str(responses), "--output", str(output)]) == 0
    metrics = json.loads((output / "text.json").read_text())["metrics"]
    assert metrics["format_valid"]["count"] == 5


def test_the_script_goes_through_the_whole_chain(tmp_path: Path) -> None:
    sizes = {"DOCUMENTS": "600", "PRETRAIN_STEPS": "120", "SFT_STEPS": "8", "GRPO_STEPS": "2", "CONTINUED_STEPS": "6"}
    settings = "grpo.group_size=4 training.prompts_per_step=8 rollout.max_new_tokens=320 evaluation.samples=1"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "examples/tiny_cpu/chain.sh"], cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False,
        env=variables() | sizes | {"RUNS": str(tmp_path), "GRPO_SETTINGS": settings, "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    base, continued = (read_metrics(tmp_path / name / "evaluation.jsonl") for name in ("0_base", "4_pretrain"))
    assert continued[0]["validation/texts"] == pytest.approx(base[-1]["validation/texts"], rel=1e-5), "the same weights"
    assert (tmp_path / "6_evaluation" / "compare.html").is_file()
