"""A Slurm of processes of this machine: `sbatch`, `srun` and `scontrol` on a PATH of its own.

    slurm = FakeSlurm(folder)
    slurm.submit(script, env)      # as sbatch: reads #SBATCH, starts the script
    slurm.warn()                   # as --signal does: to every process of every step, not to the batch script
    slurm.expire()                 # the time limit: SIGTERM to all, SIGKILL after KILL_WAIT seconds; Slurm does not requeue then
    slurm.wait()                   # how each start ended, once the job has ended for good

`scontrol requeue` ends the job as the limit does and starts the script again, with SLURM_RESTART_COUNT. Nodes are addresses of
this machine's loopback. The task of a step has a session of its own. Nothing happens by the clock: SLURM_JOB_END_TIME is far
away unless `end_in` says otherwise. What else differs: no limits of CPUs, memory or GPUs, and no queue.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.paths import ROOT

if TYPE_CHECKING:
    import psutil

KILL_WAIT = 60.0
"""Seconds between SIGTERM and SIGKILL. Slurm's KillWait is 30, but this machine may be busy."""
NUMBER = "7"


class FakeSlurm:
    """One job at a time. `end_in`: seconds to the end that the job is told. `starts` counts the runs of its script."""

    def __init__(self, folder: Path, *, end_in: int = 86_400) -> None:
        self.folder, self._end_in = folder, end_in
        self.output = folder / f"slurm-{NUMBER}.out"
        self.starts = 0
        self._ends: list[int | str] = []
        self._over = threading.Event()
        self._expired = threading.Event()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._bin = folder / "slurm-bin"
        self._bin.mkdir(parents=True)
        (folder / "steps").mkdir()
        for name in ("srun", "scontrol"):
            program = self._bin / name
            program.write_text(
                f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.support.fake_slurm {name} "$@"\n'
            )
            program.chmod(0o755)

    def submit(self, script: Path, env: Mapping[str, str]) -> None:
        """Starts a copy of the script, as sbatch does. `env` must let `tests.support` be imported."""
        self._script = self.folder / "slurm_script"
        self._script.write_text(script.read_text())
        self._options = re.findall(r"^#SBATCH (.*)$", script.read_text(), re.MULTILINE)
        self._env = {**env, "PATH": f"{self._bin}:{env['PATH']}", "FAKE_SLURM": str(self.folder)}
        self._over.clear()
        threading.Thread(target=self._run, daemon=True).start()

    def warn(self) -> None:
        """Sends the signal of --signal."""
        assert any(option.startswith("--signal=USR1@") for option in self._options), self._options
        _send(self._step_members(), signal.SIGUSR1)

    def expire(self) -> None:
        """Lets the time of the job be over."""
        self._expired.set()

    def close(self) -> None:
        """Kills what is left of the job."""
        self._closed = True
        if self._process is not None and not self.over:
            _send([*_below(self._process.pid), *self._step_members()], signal.SIGKILL)
            self._over.wait(60)

    def wait(self, seconds: float = 900.0) -> list[int | str]:
        """How each start ended: the script's status, "requeued" or "timeout"."""
        assert self._over.wait(seconds), self.output.read_text()[-6000:]
        return self._ends

    @property
    def over(self) -> bool:
        """Whether the job has ended for good."""
        return self._over.is_set()

    def steps(self) -> list[tuple[dict[str, str], list[str]]]:
        """Options, and part of the job with its arguments, of every srun so far."""
        lines = (self.folder / "sruns.jsonl").read_text().splitlines()
        return [(options, words) for options, words in map(json.loads, lines)]

    def tasks(self) -> list[int]:
        """Process ids of the tasks of all steps that have begun."""
        return [int(path.name) for path in (self.folder / "steps").iterdir()]

    def _run(self) -> None:
        try:
            while self._once() == "requeued" and not self._closed:
                pass
        finally:
            self._over.set()

    def _once(self) -> int | str:
        for path in (self.folder / "requeue", *(self.folder / "steps").iterdir()):
            path.unlink(missing_ok=True)
        self._expired.clear()
        env = self._env | {"SLURM_JOB_ID": NUMBER, "SLURM_CPUS_ON_NODE": "1", **self._node_lists()}
        env["SLURM_JOB_END_TIME"] = str(int(time.time()) + self._end_in)
        if self.starts:
            env["SLURM_RESTART_COUNT"] = str(self.starts)
        self.starts += 1
        with self.output.open("ab") as stream:
            process = subprocess.Popen(
                ["bash", str(self._script)], env=env, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True
            )
        self._process = process
        self._ends.append(self._watch(process))
        return self._ends[-1]

    def _node_lists(self) -> dict[str, str]:
        parts = [int(option.partition("=")[2]) for option in self._options if option.startswith("--nodes=")]
        names = [f"127.0.0.{index + 1}" for index in range(sum(parts))]
        if "hetjob" not in self._options:
            return {"SLURM_JOB_NODELIST": ",".join(names)}
        first, second = ",".join(names[: parts[0]]), ",".join(names[parts[0] :])
        groups = {"SLURM_JOB_NODELIST_HET_GROUP_0": first, "SLURM_JOB_NODELIST_HET_GROUP_1": second}
        return {"SLURM_JOB_NODELIST": first, **groups}

    def _watch(self, process: subprocess.Popen[bytes]) -> int | str:
        asked = self.folder / "requeue"
        while process.poll() is None and not asked.exists() and not self._expired.is_set():
            time.sleep(0.02)
        expired = process.poll() is None and self._expired.is_set()
        if process.poll() is None:
            import psutil

            family = [*_below(process.pid), *self._step_members()]
            _send(family, signal.SIGTERM)
            _, left = psutil.wait_procs(family, timeout=KILL_WAIT)
            _send(left, signal.SIGKILL)
            process.wait()
        _send(self._step_members(), signal.SIGKILL)  # a job's processes end with it
        if asked.exists():
            return "requeued"
        return "timeout" if expired else process.returncode

    def _step_members(self) -> list[psutil.Process]:
        return [member for pid in self.tasks() for member in _below(pid)]


def _below(pid: int) -> list[psutil.Process]:
    import psutil  # only here: a step starts sooner without

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def _send(members: list[psutil.Process], number: signal.Signals) -> None:
    import psutil

    for member in members:
        with suppress(psutil.NoSuchProcess):
            member.send_signal(number)


def _scontrol(words: list[str]) -> int:
    match words:
        case ["show", "hostnames", names]:
            print("\n".join(names.split(",")))
        case ["requeue", number] if number == os.environ["SLURM_JOB_ID"]:
            Path(os.environ["FAKE_SLURM"], "requeue").touch()
        case _:
            raise SystemExit(f"scontrol: {words}")
    return 0


def _srun(words: list[str]) -> int:
    """Starts a step: one task on each node of --nodelist."""
    options = {}
    while words and words[0].startswith("--"):
        name, _, value = words.pop(0).partition("=")
        options[name] = value
    nodes = options["--nodelist"].split(",")
    assert int(options["--nodes"]) == int(options["--ntasks"]) == len(nodes), options
    with Path(os.environ["FAKE_SLURM"], "sruns.jsonl").open("a") as log:
        log.write(json.dumps([options, words[4:]]) + "\n")
    tasks = []
    for index, node in enumerate(nodes):
        env = os.environ | {"SLURM_PROCID": str(index), "SLURM_NODEID": str(index), "SLURMD_NODENAME": node}
        tasks.append(subprocess.Popen(words, env=env, start_new_session=True))
        Path(os.environ["FAKE_SLURM"], "steps", str(tasks[-1].pid)).touch()

    def end(*_: object) -> None:
        for task in tasks:
            with suppress(ProcessLookupError):
                os.killpg(task.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    return max(abs(task.wait()) for task in tasks)


if __name__ == "__main__":
    sys.exit({"srun": _srun, "scontrol": _scontrol}[sys.argv[1]](sys.argv[2:]))
