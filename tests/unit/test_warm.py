"""What a forked command shares with the real one: arguments, variables, streams, session, parent, signals, status, children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import warm, witness
from tests.support.stages import ROOT, variables
from tests.support.waiting import PATIENCE, wait_for

WITNESS = [sys.executable, "-u", "-m", "tests.support.witness"]


def seen(command: list[str], **options: Any) -> dict[str, Any]:
    done = warm.run(command, **{"cwd": ROOT, "env": variables(), "timeout": 120} | options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_sees_what_the_real_command_sees(tmp_path: Path) -> None:
    options = {"cwd": tmp_path, "env": variables() | {"LWZ_TEST": "é"}}
    forked = seen([*WITNESS, "a b", "--c"], **options)
    real = json.loads(
        subprocess.run([*WITNESS, "a b", "--c"], capture_output=True, text=True, check=True, **options).stdout
    )
    assert forked.pop("megatron") and not real.pop("megatron"), "one of them is forked"
    assert forked == real and forked["parent"] == os.getpid()


def test_its_child_is_forked_and_its_own_and_dies_with_it() -> None:
    process = warm.Popen([*WITNESS, "--child"], cwd=ROOT, env=variables(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = json.loads(process.stdout.readline())
    assert child["megatron"] and child["parent"] == process.pid and child["leads_session"]
    found = psutil.Process(child["pid"])
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    wait_for(lambda: not found.is_running() or found.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("session", [False, True])
def test_signals_streams_and_status_are_its_own(tmp_path: Path, session: bool) -> None:
    with (tmp_path / "out").open("w") as out:
        process = warm.Popen([*WITNESS, "--wait"], cwd=ROOT, env=variables(), stdin=subprocess.PIPE, stdout=out,
                             stderr=subprocess.STDOUT, start_new_session=session)  # fmt: skip
    wait_for(lambda: "ready" in (tmp_path / "out").read_text(), process=process)
    assert (os.getsid(process.pid) == process.pid) == session
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 7 and (tmp_path / "out").read_text().split() == ["ready", "told", "exiting"]


def test_a_command_that_a_fork_cannot_be_is_executed() -> None:
    assert not seen(WITNESS, env=variables() | {"OMP_NUM_THREADS": "2"})["megatron"]
    assert not seen([sys.executable, str(Path(witness.__file__))])["megatron"]
