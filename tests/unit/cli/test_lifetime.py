"""A process that runs a command: it collects no garbage while it imports, and ends as others do, only sooner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stages import variables

ENDING = """
import atexit, os, sys, threading, time
from megatron_lwz.cli import common
from megatron_lwz.errors import LwzError

class Kept:
    def __del__(self, write=os.write):
        write(1, b"taken apart\\n")  # print's buffer may be gone by now

kept = Kept()
atexit.register(lambda: print("at exit"))

def work():
    threading.main_thread().join()  # it ends when the command has ended
    print("thread")

def main(argv):
    threading.Thread(target=work).start()
    print("command", *argv)
    if argv == ["refused"]:
        raise LwzError("refused")
    if argv == ["bug"]:
        raise ZeroDivisionError

sys.exit(common.run(main))
"""

COLLECTING = """
import gc, sys
sys.argv[0] = "-m"  # as it is while `python -m` imports packages
import megatron_lwz.cli
assert not gc.isenabled()
from megatron_lwz.cli import common

def main(argv):
    assert gc.isenabled() and gc.get_freeze_count() > 10_000
    common.run(lambda _: None, ["within"])
    assert gc.isenabled()

sys.exit(common.run(main))
"""


def process(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    env = {name: value for name, value in variables().items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, text=True, env=env, check=False, **streams)


@pytest.mark.parametrize(("argument", "status"), [("done", 0), ("refused", 2)])
def test_it_waits_for_threads_and_calls_exit_functions_but_takes_no_module_apart(argument: str, status: int) -> None:
    done = process(ENDING, argument)
    assert (done.returncode, done.stdout.split("\n")) == (status, [f"command {argument}", "thread", "at exit", ""])
    assert done.stderr == ("error: refused\n" if status else "")


def test_a_bug_ends_the_process_as_usual() -> None:
    done = process(ENDING, "bug")
    assert done.returncode == 1 and done.stderr.rstrip().endswith("ZeroDivisionError")
    assert done.stdout.endswith("at exit\ntaken apart\n")


def test_output_that_cannot_be_written_is_reported_as_usual() -> None:
    with Path("/dev/full").open("w") as full:
        done = process(ENDING, "done", stdout=full)
    assert done.returncode == 120 and "No space left on device" in done.stderr


def test_garbage_is_collected_once_the_command_runs() -> None:
    done = process(COLLECTING)
    assert done.returncode == 0, done.stderr
