"""What a node does, line by line: the functions of templates/node.sh in a bash, with stand-ins for what they start."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lwz.launch.script import STRICT, template
from tests.unit.launch.descriptions import config, launch, vllm

RECORD = f"""#!{sys.executable} -SE
import json, os, sys
names = [n for n in os.environ if n.startswith(("VLLM_", "LWZ_", "CUDA_", "TORCH_", "NCCL_", "JUDGE_"))]
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], {{n: os.environ[n] for n in names}}]) + "\\n")
"""
TORCHRUN = """
import os, signal, subprocess, sys
rank = os.fork()
def said(text, status):
    os.write(1, text)
    os._exit(status)
if rank == 0:
    signal.signal(signal.SIGUSR1, lambda *_: said(b"the rank has heard\\n", 3))
    open("ready", "w").close()
    while True:
        signal.pause()
def end(*_):
    os.kill(rank, signal.SIGKILL)
    said(b"torchrun has heard\\n", 5)
signal.signal(signal.SIGTERM, end)
os._exit(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with stand-ins that write down how they are started."""
    (tmp_path / "bin").mkdir()
    for name in ("torchrun", "vllm", "lwz"):
        stand_in(tmp_path, name, RECORD)
    return tmp_path


def stand_in(place: Path, name: str, text: str) -> None:
    (place / "bin" / name).write_text(text)
    (place / "bin" / name).chmod(0o755)


def bash(place: Path, settings: str, commands: str, **env: str) -> subprocess.CompletedProcess[str]:
    own = {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "RECORD": str(place / "record.jsonl")}
    script = STRICT + settings + template("node") + commands
    return subprocess.run(
        ["bash", "-c", script], cwd=place, env=own | env, capture_output=True, text=True, timeout=60, check=False
    )


def records(place: Path) -> list[list]:
    return [json.loads(line) for line in (place / "record.jsonl").read_text().splitlines()]


def described(place: Path, given: dict, **sections: object) -> str:
    return launch(config({"folder": str(place), **given}, **sections), "slurm").settings()


def test_secrets_come_from_a_file_and_no_line_of_it_is_code(place):
    file = place / "my secrets"
    file.write_text("JUDGE_KEY=$(touch hit) 'x'\nOTHER=$(touch hit)\nLWZ_ENGINE_TOKEN=a=b")
    file.chmod(0o600)
    given = {"secrets": ["JUDGE_KEY", "LWZ_ENGINE_TOKEN"], "secrets_file": str(file)}
    done = bash(place, described(place, given), 'prepare; printf "%s|" "$JUDGE_KEY" "$LWZ_ENGINE_TOKEN" "${OTHER:-}"')
    assert done.stdout == "$(touch hit) 'x'|a=b||" and not (place / "hit").exists(), done.stderr
    file.chmod(0o640)
    done = bash(place, described(place, given), "prepare")
    assert done.returncode == 2 and "chmod 600" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"secrets": ["JUDGE_KEY"]}, "the secret JUDGE_KEY is not set"),
        ({"secrets": ["JUDGE_KEY"], "secrets_file": "none"}, "launch.secrets_file none cannot be read"),
        ({"setup": "no setup"}, "launch.setup no setup cannot be read"),
        ({"folder": "/no such folder"}, "launch.folder /no such folder is not on"),
    ],
)
def test_what_is_missing_is_one_line_and_status_2(place, given, part):
    done = bash(place, described(place, given), "prepare; echo on")
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith("error: ") and part in done.stderr.splitlines()[-1]


def test_the_stage_gets_its_arguments_its_variables_and_the_engines(place):
    given = {"ranks_per_node": 4, "environment": {"NCCL_DEBUG": "a b"}, "time": "1h", "nodes": 3}
    done = bash(place, described(place, given), "prepare; urls=(http://a:1 http://b:2); train 3 head id")
    assert done.returncode == 0, done.stderr
    ((name, argv, env),) = records(place)
    assert name == "torchrun" and env["NCCL_DEBUG"] == "a b" and env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    save_by = argv.pop(-2)
    assert save_by.startswith("run.must_save_by=20") and save_by.endswith("Z")
    assert argv == shlex.split(
        "--nnodes 3 --nproc-per-node 4 --rdzv-backend c10d --rdzv-id id --rdzv-endpoint head:29500 --max-restarts 3 "
        "-m megatron_lwz.cli.train_grpo config.yaml rollout.urls=[http://a:1,http://b:2]"
    )


def test_the_time_of_the_job_or_of_the_config_goes_first(place):
    bash(place, described(place, {"time": "1h"}), "prepare; urls=(); train 1 h i", SLURM_JOB_END_TIME="9")
    bash(place, described(place, {"time": "1h"}, run={"must_save_by": "10m"}), "prepare; urls=(); train 1 h i")
    assert [[word for word in argv if "must_save_by" in word] for _, argv, _ in records(place)] == [
        ["run.must_save_by=slurm"],
        [],
    ]


@pytest.mark.parametrize(("scheduler", "expected"), [(None, ["4,5", "6,7"]), ("GPU-a,GPU-b,GPU-c,GPU-d,GPU-e,GPU-f,GPU-g,GPU-h", ["GPU-e,GPU-f", "GPU-g,GPU-h"])])  # fmt: skip
def test_engines_have_the_gpus_after_the_trainers_and_the_token_in_no_argument(place, scheduler, expected):
    engines = {"nodes": 0, "per_node": 2, "gpus": 2, "command": "vllm"}
    given = launch(vllm({"ranks_per_node": 4, "max_restarts": 0, "engines": engines, "folder": str(place)}), "torchrun")
    env = {"LWZ_ENGINE_TOKEN": "very-secret"} | ({"CUDA_VISIBLE_DEVICES": scheduler} if scheduler else {})
    done = bash(place, given.settings(), "prepare; urls=(); serve_all 127.0.0.1 here; wait; train 1 h i", **env)
    started = sorted(records(place), key=lambda record: (record[0] == "torchrun", record[1][-1]))
    assert [env["CUDA_VISIBLE_DEVICES"] for _, _, env in started[:2]] == expected, done.stderr
    assert started[2][2]["CUDA_VISIBLE_DEVICES"] == ("0,1,2,3" if scheduler is None else "GPU-a,GPU-b,GPU-c,GPU-d")
    for index, (name, argv, env) in enumerate(started[:2]):
        assert name == "vllm" and argv[-4:] == ["--host", "127.0.0.1", "--port", str(8000 + index)]
        assert env["VLLM_API_KEY"] == "very-secret" and "very-secret" not in " ".join(argv)
        assert (place / "runs" / "try.launch" / f"engine-here-{index}.log").stat().st_mode & 0o777 == 0o600


def test_an_engine_that_ends_is_started_again_so_often(place):
    engines = {"nodes": 1, "per_node": 1, "gpus": 1, "command": "vllm"}
    given = launch(vllm({"max_restarts": 2, "engines": engines, "folder": str(place)}), "torchrun")
    done = bash(
        place, given.settings(), "prepare; sleep() { :; }; serve_all 0.0.0.0 a; wait $served", LWZ_ENGINE_TOKEN="x"
    )
    assert len(records(place)) == 3 and done.stderr.count("http://a:8000 ended with status 0") == 3
    assert "http://a:8000 ended with status 0" in (place / "runs" / "try.launch" / "failed-a-0").read_text()


def test_engines_end_when_they_are_stopped_and_sigusr1_does_nothing_to_them(place):
    stand_in(place, "vllm", "#!/usr/bin/env bash\necho $$ >pid-$BASHPID\nexec sleep 1000\n")
    engines = {"nodes": 1, "per_node": 2, "gpus": 1, "command": "vllm"}
    given = launch(vllm({"engines": engines, "folder": str(place)}), "torchrun")
    ready = "until [[ $(cat pid-* 2>/dev/null | wc -l) == 2 ]]; do sleep 0.02; done"
    commands = f"trap '' USR1; prepare; serve_all 0.0.0.0 a; {ready}; kill -USR1 $(cat pid-*); kill -0 $(cat pid-*); stop_engines"
    done = bash(place, given.settings(), commands, LWZ_ENGINE_TOKEN="x")
    assert done.returncode == 0 and done.stderr == ""
    pids = [int(file.read_text()) for file in place.glob("pid-*")]
    assert len(pids) == 2 and not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_sigterm_goes_on_to_torchrun_and_sigusr1_to_its_ranks(place):
    stand_in(place, "torchrun", f"#!{sys.executable} -SE\n{TORCHRUN}")
    for number, said in (("USR1", "the rank has heard\nstatus 3\n"), ("TERM", "torchrun has heard\nstatus 5\n")):
        (place / "ready").unlink(missing_ok=True)
        signalled = f"(until [[ -e ready ]]; do sleep 0.02; done; kill -{number} $$) &"
        done = bash(place, described(place, {}), f"prepare; urls=(); {signalled} train 1 h i || echo status $?")
        assert done.stdout == said, (number, done.stderr)


def test_how_a_run_ended_is_a_status(place):
    settings = described(place, {})
    assert (
        bash(place, settings, "cd $folder; outcome 0; outcome 7; begin; touch $state/unfinished; outcome 1").stdout
        == "1\n7\n75\n"
    )
    (place / "runs" / "try").mkdir(parents=True)
    (place / "runs" / "try" / "summary.json").touch()
    assert bash(place, settings, "cd $folder; begin; outcome 0; outcome 1").stdout == "0\n0\n"


def test_a_number_of_hosts_that_does_not_fit_is_refused(place):
    done = bash(place, described(place, {"nodes": 2}), "start 0 id only-one")
    assert done.returncode == 2 and done.stderr == "error: 1 hosts are given, the launch has 2\n"
