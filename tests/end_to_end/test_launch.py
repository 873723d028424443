"""What `lwz launch` writes runs, is told that its time is over, is killed at the limit, starts again, and resumes.

Slurm is a fake one (tests/support/fake_slurm.py); torchrun, ranks and engines are real, on CPUs. The long tests start the programs
themselves, the short one forks of them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from megatron_lwz.cli import common, launch
from megatron_lwz.http.ports import free_port
from megatron_lwz.run_paths import RunPaths
from tests.support.chaos import family
from tests.support.fake_slurm import FakeSlurm
from tests.support.grpo_runs import write_example
from tests.support.paths import ROOT
from tests.support.stages import rows_of, variables
from tests.support.waiting import wait_for
from tests.support.warm_programs import warm_programs

PATH_OF_THE_TESTS = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
"""The scripts call `python` and `torchrun`, as after the activation of the environment."""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[FakeSlurm]:
    with closing(FakeSlurm(tmp_path / "slurm")) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    with warm_programs(tmp_path) as programs:
        yield f"{programs}:{os.environ['PATH']}"


def example(folder: Path, described: dict[str, Any], **sections: Any) -> Path:
    described = {"gpus_per_node": 0, "ranks_per_node": 1, "folder": str(ROOT), **described}
    steps = {
        "training": {"steps": 500},
        "checkpoint": {"interval": 1000, "keep": 2},
        "evaluation": {"concurrent": False},
    }
    return write_example(folder, launch=described, **{**steps, "data": {"held_out_prompts": None}, **sections})


def rendered(target: str, config: Path, *overrides: str) -> Path:
    assert common.run(launch.main, [target, str(config), *overrides]) == 0
    (script,) = (config.parent / "run.launch").glob(f"{target}.*")
    return script


def set_steps(config: Path, steps: int) -> None:
    tree = yaml.safe_load(config.read_text())
    tree["training"]["steps"] = steps
    config.write_text(yaml.safe_dump(tree))


def done(run: Path) -> int:
    """Steps that are written; a line may be half there."""
    metrics = RunPaths(run).metrics
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def saved_by(slurm: FakeSlurm) -> int:
    """The step after which the job that was warned has saved; the next start may have made more by now."""
    found = re.search(r"saved and stopped after step (\d+) of 500 \(SIGUSR1\)", slurm.output.read_text())
    assert found, slurm.output.read_text()
    return int(found[1])


def starts_of(run: Path) -> int:
    attempts = RunPaths(run).attempts
    return len(attempts.read_text().splitlines()) if attempts.exists() else 0


def test_a_slurm_job_saves_when_warned_is_requeued_is_killed_at_the_limit_and_resumes(
    tmp_path: Path, path: str, slurm: FakeSlurm
) -> None:
    run = tmp_path / "run"
    config = example(tmp_path, {"time": "2h", "signal_before": "10m"})
    script = rendered("slurm", config)
    slurm.submit(script, variables() | {"PATH": path})
    wait_for(lambda: done(run) or slurm.over, what="the first step", output=slurm.output.read_text)
    slurm.warn()
    wait_for(lambda: slurm.starts == 2 or slurm.over, what="the requeue", output=slurm.output.read_text)
    saved = saved_by(slurm)
    wait_for(lambda: done(run) > saved or slurm.over, what="a further step", output=slurm.output.read_text)
    slurm.expire()
    assert slurm.wait() == ["requeued", "timeout"], slurm.output.read_text()
    assert not RunPaths(run).summary.exists() and starts_of(run) == 2
    set_steps(config, saved + 2)
    slurm.submit(script, variables() | {"PATH": path})
    assert slurm.wait() == ["requeued", "timeout", 0], slurm.output.read_text()
    assert [row["step"] for row in rows_of(run)] == list(range(1, saved + 3)) and RunPaths(run).summary.exists()
    assert starts_of(run) == 3


def with_engine(folder: Path, **described: Any) -> Path:
    """Two trainer nodes of one rank, and a node with an engine; on ports that nobody else has."""
    engines = {"nodes": 1, "per_node": 1, "gpus": 0, "port": free_port(), **described.pop("engines", {})}
    section = {"nodes": 2, "port": free_port(), "engines": engines, "time": "3h", "max_restarts": 2, **described}
    secrets = {"secrets": ["LWZ_ENGINE_TOKEN"], "image": "trainer:1"}
    config = example(folder, {**secrets, **section}, endless=True, parallel={"tensor": 2})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, folder / "policy")  # the engine takes it from there
    return config


def kill_rank(roots: Sequence[subprocess.Popen[bytes] | psutil.Process]) -> None:
    """SIGKILL to one rank below these processes."""
    ranks = [
        member
        for root in roots
        for member in family.members(root)
        if family.alive(member)
        and "megatron_lwz.cli.train_grpo" in member.cmdline()
        and "--nnodes" not in member.cmdline()
    ]
    ranks[-1].kill()


def env_of(path: str) -> dict[str, str]:
    return variables() | {"PATH": path, "LWZ_ENGINE_TOKEN": "a-token-of-the-test"}


@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["--comment=engines"]], ids=["one job", "heterogeneous"])
def test_a_slurm_job_on_two_trainer_nodes_and_an_engine_node(
    tmp_path: Path, slurm: FakeSlurm, options: list[str]
) -> None:
    run = tmp_path / "run"
    config = with_engine(tmp_path, engines={"slurm_options": options})

    def until(condition: Any, what: str) -> None:
        wait_for(lambda: condition() or slurm.over, what=what, output=slurm.output.read_text, seconds=400)
        assert not slurm.over, slurm.output.read_text()[-5000:]

    script = rendered("slurm", config)
    slurm.submit(script, env_of(PATH_OF_THE_TESTS))
    until(lambda: done(run), "the first step")
    slurm.warn()
    until(lambda: slurm.starts == 2, "the requeue")
    saved = saved_by(slurm)
    until(lambda: done(run) > saved, "a step of the second start")
    starts = starts_of(run)
    kill_rank([psutil.Process(pid) for pid in slurm.tasks() if psutil.pid_exists(pid)])
    until(lambda: starts_of(run) == starts + 1, "torchrun's restart")
    before = done(run)
    until(lambda: done(run) > before, "a step after the restart")
    slurm.expire()
    assert slurm.wait()[:2] == ["requeued", "timeout"], slurm.output.read_text()[-5000:]
    set_steps(config, saved + 2)
    slurm.submit(script, env_of(PATH_OF_THE_TESTS))
    assert slurm.wait()[2:] == [0], slurm.output.read_text()[-5000:]
    assert [row["step"] for row in rows_of(run)] == list(range(1, saved + 3)) and RunPaths(run).summary.exists()


class Nodes:
    """The nodes of a launch without a batch script, as processes of this machine: 0 and 1 train, 2 has an engine."""

    def __init__(self, target: str, script: Path, folder: Path) -> None:
        self._target, self._folder = target, folder
        self.attempt = 1
        text = script.read_text()
        if target == "kubernetes":
            text = next(yaml.safe_load_all(text))["data"]["node.sh"]
            for name in ("run-0.run", "run-1.run", "run-engines-0.run-engines"):
                assert name in text
                text = text.replace(name, "127.0.0.1")  # the cluster's names of the pods
        if target == "skypilot":
            text = yaml.safe_load(text)["run"]
        self._script = folder / "node.sh"
        self._script.write_text(text)

    def start(self, *numbers: int) -> list[subprocess.Popen[bytes]]:
        return [self._start(number) for number in numbers]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        env, words = env_of(PATH_OF_THE_TESTS), ["bash", str(self._script)]
        match self._target:
            case "torchrun":
                words += [str(number), *["127.0.0.1"] * 3]
                env["LWZ_LAUNCH_ID"] = f"start-{self.attempt}"
            case "kubernetes" if number == 2:
                env["HOSTNAME"] = "run-engines-0"
            case "kubernetes":
                env["JOB_COMPLETION_INDEX"] = str(number)
            case "skypilot":
                env |= {"SKYPILOT_NODE_RANK": str(number), "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * 3)}
                env["SKYPILOT_TASK_ID"] = f"sky-{self.attempt}"
        with self.log(number).open("ab") as stream:
            return subprocess.Popen(
                words, cwd=self._folder, env=env, stdout=stream, stderr=stream, start_new_session=True
            )

    def log(self, number: int) -> Path:
        return self._folder / f"node-{number}.log"

    def said(self) -> str:
        return "".join(f"--- node {n}\n{self.log(n).read_text()[-2500:]}" for n in range(3) if self.log(n).exists())


@contextmanager
def ending(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Whatever happens inside, none of them is left."""
    try:
        yield
    finally:
        for process in processes:
            family.kill(family.members(process))
            process.wait()


@pytest.mark.long
@pytest.mark.parametrize("target", ["torchrun", "kubernetes", "skypilot"])
def test_two_trainer_nodes_and_an_engine_node(tmp_path: Path, target: str) -> None:
    run = tmp_path / "run"
    config = with_engine(tmp_path)
    nodes = Nodes(target, rendered(target, config), tmp_path)
    everything: list[subprocess.Popen[bytes]] = []
    with ending(everything):
        engine, trainers = nodes.start(2), nodes.start(0, 1)
        everything += [*engine, *trainers]

        def until(condition: Any, what: str) -> None:
            wait_for(condition, what=what, output=nodes.said, seconds=400, process=trainers[0])

        until(lambda: done(run), "the first step")
        trainers[0].send_signal(signal.SIGUSR1)
        assert [process.wait(300) for process in trainers] == [75, 75], nodes.said()
        saved = done(run)
        if target != "kubernetes":
            assert engine[0].wait(120) == 0, nodes.said()
        nodes.attempt = 2
        engine_again = [] if target == "kubernetes" else nodes.start(2)
        trainers = nodes.start(0, 1)
        everything += [*engine_again, *trainers]
        until(lambda: done(run) > saved, "a step of the second start")
        starts = starts_of(run)
        kill_rank(trainers)
        until(lambda: starts_of(run) == starts + 1, "torchrun's restart")
        before = done(run)
        until(lambda: done(run) > before, "a step after the restart")
        for process in [*trainers, *engine_again]:  # the limit of the time, or the machines are gone
            family.kill(family.members(process))
            process.wait()
        set_steps(config, saved + 2)
        nodes.attempt = 3
        engine_again = [] if target == "kubernetes" else nodes.start(2)
        trainers = nodes.start(0, 1)
        everything += [*engine_again, *trainers]
        assert [process.wait(600) for process in trainers] == [0, 0], nodes.said()
        assert [row["step"] for row in rows_of(run)] == list(range(1, saved + 3)) and RunPaths(run).summary.exists()
        if target == "kubernetes":
            engine[0].terminate()
            assert engine[0].wait(60) == 143, nodes.said()


@pytest.mark.long
def test_one_node_with_trainer_and_engine(tmp_path: Path) -> None:
    """Saved on SIGUSR1, killed, told to end by its time, finished: the same script each time."""
    run = tmp_path / "run"
    config = with_engine(tmp_path, nodes=1, ranks_per_node=2, engines={"nodes": 0})
    script = rendered("torchrun", config)
    log = tmp_path / "log"
    everything: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as stream:
            everything.append(
                subprocess.Popen(["bash", str(script)], env=env_of(PATH_OF_THE_TESTS), stdout=stream, stderr=stream)
            )
        return everything[-1]

    with ending(everything):
        process = start()
        wait_for(lambda: done(run), process=process, output=log.read_text, seconds=400)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(300) == 75, log.read_text()
        saved, process = done(run), start()
        wait_for(lambda: done(run) > saved, process=process, output=log.read_text, seconds=400)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) not in (0, 75), log.read_text()
        process = start()
        wait_for(lambda: done(run) > saved, process=process, output=log.read_text, seconds=400)
        family.kill(family.members(process))
        process.wait()
        set_steps(config, saved + 2)
        assert start().wait(600) == 0, log.read_text()
        assert [row["step"] for row in rows_of(run)] == list(range(1, saved + 3)) and RunPaths(run).summary.exists()
