"""A step that is not finite, for real: skipped, then the end of the budget; and any step computed again by `lwz replay`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch

from megatron_lwz.metrics import read_metrics
from megatron_lwz.rollout.journal_reader import JournalReader
from tests.support import stages, warm
from tests.support.files import contents
from tests.support.grpo_runs import ROOT, command, train, variables, write_example

LOSS = "tests.support.grpo_runs:fails_at_one_entropy"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an example whose run went through: four steps, checkpoints after 2 and 4, a KL term."""
    folder = tmp_path_factory.mktemp("replay")
    train(write_example(folder, grpo={"kl_coefficient": 0.1, "loss_function": LOSS}, evaluation={"interval": 0}))
    return folder


def replay(run: Path, step: int, output: Path, *overrides: str, **environment: str) -> tuple[str, dict]:
    """Returns what the command said, and its JSON file. The run is as it was, but for what every reader of SQLite leaves."""
    before = contents(run)
    line = command(run, *overrides)
    line[line.index("megatron_lwz.cli.train_grpo")] = "megatron_lwz.cli.replay"
    line += ["--step", str(step), "--output", str(output)]
    done = warm.run(line, cwd=ROOT, env=variables() | environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {
        name: data for name, data in contents(run).items() if name in before or not name.endswith(("-shm", "-wal"))
    }
    assert after == before
    return done.stdout + done.stderr, json.loads((output / f"step_{step:08d}.json").read_text())


@pytest.mark.parametrize("step", [1, 4])
def test_a_step_is_computed_again_bit_for_bit(sound: Path, tmp_path: Path, step: int) -> None:
    """Step 1 begins with the first weights, step 4 with the checkpoint of step 2, and trains step 3 on the way."""
    run = sound / "run"
    shown, found = replay(run, step, tmp_path / "out")
    row = next(row for row in read_metrics(run / "metrics.jsonl") if row["step"] == step)
    for name in ("loss", "grad_norm", "entropy", "kl", "mismatch/difference", "mismatch/difference/max"):
        assert found["metrics"][name] == row[name] == found["recorded"][name], name
    assert shown.count(": the same") == 5 and "not the same" not in shown
    assert found["checkpoint"] == (None if step == 1 else str(run / "checkpoints/step_00000002"))
    assert found["trained_since"] == ([] if step == 1 else [3])

    assert sum(share["loss"] for share in found["shares"]) == pytest.approx(row["loss"], rel=1e-5, abs=1e-8)
    assert sum(share["tokens"] for share in found["shares"]) == row["trained_tokens"]
    assert max(s["largest"] for s in found["shares"]) == pytest.approx(row["mismatch/difference/max"])
    with JournalReader(run / "journal.sqlite") as journal:
        rollouts = [rollout for group in journal.groups(consumed_at=step) for rollout in group.rollouts]
    tensors = safetensors.torch.load_file(tmp_path / "out" / f"step_{step:08d}.safetensors")
    assert found["rollouts"] == [rollout.id for rollout in rollouts]
    assert tensors["tokens"].tolist() == [t for r in rollouts for t in (*r.prompt_tokens, *r.tokens)]


def test_a_budget_that_is_spent_ends_with_a_checkpoint_and_the_run_can_go_on(sound: Path, tmp_path: Path) -> None:
    rows = read_metrics(sound / "run/metrics.jsonl")
    assert all(abs(row["entropy"] - rows[2]["entropy"]) > 1e-4 for row in rows if row["step"] != 3)
    bad = {"BAD_ENTROPY": str(rows[2]["entropy"])}
    run = tmp_path / "run"
    line = command(sound / "config.yaml", f"run.dir={run}", "training.skip_budget=0")
    done = warm.run(line, cwd=ROOT, env=variables() | bad, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "step 3: loss nan" in error and "rank 0, micro-batch 1 of 1: rollouts 4-0, 4-1" in error
    assert "skipped (1 of 0 in training.skip_budget)" in error and "the run stops at step 3" in error
    assert (run / "checkpoints/latest").read_text() == "step_00000003"
    after = read_metrics(run / "metrics.jsonl")
    assert [row["skipped"] for row in after] == [0, 0, 1] and after[2]["loss"] != after[2]["loss"]
    assert after[1]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-4)  # an engine's batches depend on its speed

    shown, found = replay(run, 3, tmp_path / "out", **bad)
    assert found["metrics"]["loss"] == "nan" and "loss nan: the same" in shown
    assert "rollouts 4-0, 4-1" in shown and {share["loss"] for share in found["shares"]} == {"nan"}

    done = stages.run("train_grpo", str(sound / "config.yaml"), f"run.dir={run}", "training.skip_budget=1")
    assert done.returncode == 0, done.stdout + done.stderr
    after = read_metrics(run / "metrics.jsonl")
    assert [row["skipped"] for row in after] == [0, 0, 1, 1] and after[3]["loss"] == after[3]["loss"]


def test_what_cannot_be_replayed_is_one_line(sound: Path, tmp_path: Path) -> None:
    run = str(sound / "run")
    cases = {
        f"{run} --step 9": "does not hold all that step 9 trained on",
        f"{run} --step 1 --output {run}/repro": "lies in the run",
        f"{tmp_path} --step 1": "name the folder of a GRPO run",
        f"{run} --step 0": "--step",
        f"{run} --step 1 parallel.tensor=2": "must divide the 1 ranks",
    }
    for arguments, message in cases.items():
        line = stages.command("replay", *arguments.split())
        done = warm.run(line, cwd=ROOT, env=variables(), timeout=300)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1
