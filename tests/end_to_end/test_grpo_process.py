"""The main job with its controller in a process of its own, when one of the processes dies."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from tests.support.grpo_runs import ROOT, command, variables, write_example
from tests.support.journal_checks import assert_every_token_once
from tests.support.waiting import wait_for

PROCESS = "rollout.controller=process"


@pytest.mark.long
def test_whoever_dies_the_others_end_and_the_run_goes_on(tmp_path: Path) -> None:
    config = write_example(
        tmp_path,
        training={"steps": 4, "accumulate_groups": 1},
        rollout={"max_new_tokens": 300},
        data={"held_out_prompts": None},
        reward={"functions": [f"tests.support.grpo_runs:{name}" for name in ("share_of_spaces", "holds_megatron")]},
    )
    run = tmp_path / "run"
    for victim, steps in (("rollout_host", 1), ("train_grpo", 2)):
        job = subprocess.Popen(
            command(config, PROCESS),
            cwd=ROOT,
            env=variables(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        wait_for(
            lambda steps=steps: (run / "metrics.jsonl").exists() and len(read_metrics(run / "metrics.jsonl")) >= steps,
            seconds=240,
            process=job,
        )
        family = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
        roles = {role for role in ("train_grpo", "rollout_host", "serve_engine") if process_of(role, family)}
        assert roles == {"train_grpo", "rollout_host", "serve_engine"}
        process_of(victim, family)[0].kill()
        said, _ = job.communicate(timeout=60)
        _, alive = psutil.wait_procs(family[1:], 30)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        if victim == "rollout_host":
            assert job.returncode == 2, said
            (line,) = [line for line in said.splitlines() if line.startswith("error")]
            assert "the rollout process (rollout.controller: process) ended with status -9" in line
            assert "Traceback" not in said
    # In processes of its own: those that `train` forks have imported Megatron-Core before.
    subprocess.run(command(config, PROCESS), cwd=ROOT, env=variables(), check=True, timeout=600)
    with JournalReader(run / "journal.sqlite") as journal:
        assert sorted(journal.consumed().values()) == [step for step in range(1, 5) for _ in range(2)]
    assert_every_token_once(run / "journal.sqlite")
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 5))
    assert [row["reward/holds_megatron"] for row in rows] == [0.0] * 4, "the rollout process imports no Megatron"


def process_of(role: str, family: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in family if any(f"megatron_lwz.cli.{role}" == word for word in process.cmdline())]
