"""The batch script under a fake Slurm, with stand-ins for what its steps start: which part runs on which node, and how it ends."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from megatron_lwz.config import load_config
from megatron_lwz.launch import slurm
from tests.support.fake_slurm import FakeSlurm
from tests.support.paths import ROOT
from tests.support.stages import variables
from tests.unit.launch.descriptions import launch, vllm

CHAIN = "examples/longwriter_zero_32b_64xh100"
RECORD = f"""#!{sys.executable} -SE
import json, os, signal, sys, time
name = os.path.basename(sys.argv[0])
seen = {{n: os.environ[n] for n in os.environ if n.startswith(("VLLM_", "LWZ_ENGINE", "CUDA_V", "TORCH_D", "SLURMD_", "SRUN_"))}}
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([name, sys.argv[1:], seen]) + "\\n")
"""
TRAINER = """
first = "SLURM_RESTART_COUNT" not in os.environ
if os.environ.get("STAND_IN") == "hangs" and first:
    time.sleep(1000)
while open(os.environ["RECORD"]).read().count('["vllm"') < int(os.environ.get("ENGINES", 0)):
    time.sleep(0.02)  # else the job could end before the engines of a slow node have begun
run = os.environ["RUN"]
os.makedirs(run, exist_ok=True)
if os.environ.get("STAND_IN") == "saves" and first:
    open(os.environ["LWZ_UNFINISHED_NOTE"], "w").close()
elif os.environ.get("STAND_IN") == "fails":
    sys.exit(1)
else:
    open(run + "/summary.json", "w").close()
"""
PYTHON = """
failing = os.environ.get("FAILING_NODE")
if failing == sys.argv[sys.argv.index("--node") + 1] if "--node" in sys.argv else False:
    print("error: this node cannot", file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name, more in {"torchrun": TRAINER, "vllm": "time.sleep(1000)", "python": PYTHON, "curl": ""}.items():
        (tmp_path / "bin" / name).write_text(RECORD + more)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def environment(place: Path, **more: str) -> dict[str, str]:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    record = {"RECORD": str(place / "record.jsonl"), "RUN": str(place / "run")}
    return variables() | {"PATH": path, "LWZ_ENGINE_TOKEN": "a-token", **record, **more}


def records(place: Path) -> list[list]:
    return [json.loads(line) for line in (place / "record.jsonl").read_text().splitlines()]


def run_job(place: Path, text: str, *, end_in: int = 86_400, **more: str) -> tuple[FakeSlurm, list[int | str]]:
    script = place / "job.sh"
    script.write_text(text)
    job = FakeSlurm(place / "slurm", end_in=end_in)
    job.submit(script, environment(place, **more))
    try:
        return job, job.wait(120)
    finally:
        job.close()


def described(place: Path, **given: object) -> str:
    engines = {"nodes": 2, "per_node": 1, "gpus": 8, "command": "vllm", **given.pop("engines", {})}
    section = {"nodes": 2, "folder": str(ROOT), "image": None, "time": "2h", "engines": engines, **given}
    return slurm.render(launch(vllm(section, run={"dir": str(place / "run")}), "slurm"))


def test_a_heterogeneous_job_that_has_saved_goes_back_to_the_queue_and_then_ends(place):
    text = described(place, engines={"slurm_options": ["--partition=l40s"]})
    job, ends = run_job(place, text, STAND_IN="saves")
    assert ends == ["requeued", 0] and "back to the queue" in job.output.read_text(), job.output.read_text()
    parts = [words[0] for _, words in job.steps()]
    assert sorted(parts[:4]) == ["check_node", "check_node", "engine_node", "train_node"] and len(parts) == 8
    assert {words[0]: (options["--het-group"], options["--nodelist"]) for options, words in job.steps()[2:4]} == {
        "engine_node": ("1", "127.0.0.3,127.0.0.4"),
        "train_node": ("0", "127.0.0.1,127.0.0.2"),
    }
    checked = [
        argv[argv.index("--node") + 1] for name, argv, _ in records(place) if name == "python" and "--node" in argv
    ]
    assert sorted(checked) == ["0", "0", "1", "1", "2", "2", "3", "3"]
    heads = {argv[argv.index("--rdzv-endpoint") + 1] for name, argv, _ in records(place) if name == "torchrun"}
    ids = [argv[argv.index("--rdzv-id") + 1] for name, argv, _ in records(place) if name == "torchrun"]
    assert heads == {"127.0.0.1:29500"} and sorted(ids) == ["7.0", "7.0", "7.1", "7.1"]


def test_a_job_that_has_not_ended_in_time_asks_for_the_queue_itself(place):
    job, ends = run_job(place, described(place, max_requeues=1), end_in=0, STAND_IN="hangs")
    assert ends[0] == "requeued" and len(ends) == 2, job.output.read_text()
    assert "the time is over: back to the queue" in job.output.read_text()


def test_a_run_that_failed_or_a_node_that_cannot_ends_the_job(place):
    job, ends = run_job(place, described(place), STAND_IN="fails")
    assert ends == [1], job.output.read_text()
    (place / "record.jsonl").unlink()
    other = place / "other"
    other.mkdir()
    script = place / "job.sh"
    job = FakeSlurm(other / "slurm")
    job.submit(script, environment(place, FAILING_NODE="3"))
    assert job.wait(120) == [2] and "error: this node cannot" in job.output.read_text()
    assert {name for name, _, _ in records(place)} == {"python"}, "nothing is started"


def test_requeues_have_a_limit(place):
    job, ends = run_job(place, described(place, max_requeues=0), STAND_IN="saves")
    assert ends == [75] and "launch.max_requeues = 0 is reached: submit it again" in job.output.read_text()


def started(place: Path, script: str) -> list[tuple]:
    """What a job on eight nodes has started: program, node, arguments in the order of their names, variables."""
    (place / "record.jsonl").unlink(missing_ok=True)
    folder = place / "slurm"
    folder.rename(place / "slurm-before") if folder.exists() else None
    job, ends = run_job(place, script, ENGINES="8")
    assert ends == [0], job.output.read_text()
    found = []
    for name, argv, env in records(place):
        if name not in ("torchrun", "vllm"):
            continue
        env.pop("SRUN_CPUS_PER_TASK", None)
        values = sorted(" ".join(pair) for pair in zip(argv, [*argv[1:], ""], strict=True) if pair[0].startswith("-"))
        plain = [word for word in argv if "=" in word]
        found.append((name, env.pop("SLURMD_NODENAME"), values, plain, env))
    return sorted(found, key=str)


def test_the_chain_s_own_script_and_the_rendered_one_start_the_same(place):
    """examples/longwriter_zero_32b_64xh100/cluster.sh, whose steps export the policy afterwards, against the same description."""
    run = place / "run"
    step = f"{CHAIN}/5_longwriter_zero.yaml"
    overrides = [f"run.dir={run}"]
    by_hand = "#!/usr/bin/env bash\n#SBATCH --nodes=8\nset -euo pipefail\nTRAINER_NODES=4\nVLLM=vllm\n"
    by_hand += f"source {CHAIN}/cluster.sh\nserve_engines runs/longwriter_zero_32b/4_pretrain/hf {place}/logs\n"
    by_hand += f'train train_grpo {step} {overrides[0]} rollout.urls="[$urls]"\n'
    described = [*overrides, "launch.engines.command=vllm", f"launch.folder={ROOT}"]
    rendered = slurm.render(launch(load_config(ROOT / step, described), "slurm", (step, *overrides)))
    before, after = started(place, by_hand), started(place, rendered)
    assert len(before) == 4 + 8
    assert [(name, node, [v for v in values if "--rdzv-id" not in v]) for name, node, values, _, _ in before] == [
        (name, node, [v for v in values if "--rdzv-id" not in v]) for name, node, values, _, _ in after
    ]
    assert [sorted(plain) for *_, plain, _ in before] == [sorted(plain) for *_, plain, _ in after]
    assert [env for *_, env in before] == [env for *_, env in after]


def test_a_job_of_another_size_is_refused(place):
    text = described(place).replace("#SBATCH --nodes=4", "#SBATCH --nodes=3")
    job, ends = run_job(place, text)
    assert ends == [2] and "error: the job has 2 + 1 nodes, the launch 2 + 2" in job.output.read_text()
