"""The main job on a real vLLM: `rollout.engine: vllm`, `rollout.urls`, new weights after every step."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from tests.support.grpo_runs import command, variables, write_example
from tests.support.stages import ROOT
from tests.vllm.conftest import TOKEN

pytestmark = pytest.mark.vllm

STEPS = 4


@pytest.mark.parametrize("controller", ["thread", "process"])
def test_a_run_on_vllm_stays_on_policy_through_every_weight_sync(controller, vllm, tmp_path):
    config = write_example(
        tmp_path,
        training={"steps": STEPS},
        rollout={
            "engine": "vllm",
            "urls": [vllm.url],
            "max_new_tokens": 40,
            "temperature": 0.8,
            "controller": controller,
        },
        data={"held_out_prompts": None},
        optimizer={"lr": 1e-3},
    )
    overrides = [f"model.hf={vllm.first}", "model.architecture=null", f"model.tokenizer={vllm.first}"]
    done = subprocess.run(
        command(config, *overrides, "parallel.tensor=2", ranks=2), cwd=ROOT, env=variables() | {"LWZ_ENGINE_TOKEN": TOKEN},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    gaps = [row["mismatch/difference/max"] for row in rows]
    print("largest log-prob gap per step, vLLM against the trainer:", [f"{gap:.2e}" for gap in gaps])
    assert max(gaps) <= 1e-4, "each step's rollouts are written by the weights of that step, their prompts read by them"
    assert all(row["grad_norm"] > 0 for row in rows), "the weights did change"
    with JournalReader(tmp_path / "run" / "journal.sqlite") as journal:
        assert journal.consumed() == {2 * step + place: step + 1 for step in range(STEPS) for place in (0, 1)}
        for group in journal.groups():
            writers = {segment.version.step for rollout in group.rollouts for segment in rollout.versions}
            assert writers == {group.id // 2}

    async def version() -> str | None:
        async with vllm.client() as client:
            return await client.weight_version()

    assert asyncio.run(version()).startswith(f"{STEPS}."), "the last weights are served"
