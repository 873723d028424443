"""`lwz evaluate …` as its user calls it: in this process, or as one of its own (forked, or by the real command line)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from megatron_lwz.cli import common, main
from tests.support import warm
from tests.support.grpo_runs import ROOT, variables
from tests.support.scripted_server import KEY, Scripted
from tests.support.waiting import wait_for

ENVIRONMENT = variables() | {"LWZ_JUDGE_KEY": KEY, "LWZ_ENGINE_TOKEN": KEY}


def lwz(*argv: object) -> int:
    """The exit status, from this process."""
    return common.run(main.dispatch, ["evaluate", *map(str, argv)])


def mistake(capsys: Any, *argv: object) -> str:
    """What a command that cannot be carried out says: one line on stderr, exit status 2.

    It makes no output, but for the replies of a judge that was asked.
    """
    capsys.readouterr()
    outputs = [Path(argv[place + 1]) for place, word in enumerate(argv) if word == "--output"]
    outputs = [output for output in outputs if not output.exists()]
    assert lwz(*argv) == 2
    made = [[file.name.partition(".")[0] for file in output.iterdir()] for output in outputs if output.is_dir()]
    assert all(set(names) <= {"judge_cache", "score_cache"} and names for names in made), "made before the refusal"
    lines = [line for line in capsys.readouterr().err.splitlines() if "WARNING" not in line]
    assert len(lines) == 1, lines
    return lines[0]


def judged_by(server: Scripted, *, concurrency: int) -> list[str]:
    """The settings that name a scripted server as the judge."""
    return [f"judge.url={server.url}", "judge.model=m", f"judge.concurrency={concurrency}"]


def command(argv: Sequence[object]) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "megatron_lwz.cli.main", "evaluate", *map(str, argv)]


def run(argv: Sequence[object], *, real: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs it to its end; AssertionError with what it said if it fails."""
    line, options = command(argv), {"cwd": ROOT, "env": ENVIRONMENT, "timeout": 300.0}
    done = subprocess.run(line, capture_output=True, text=True, **options) if real else warm.run(line, **options)
    assert done.returncode == 0, done.stderr
    return done


def kill_when(argv: Sequence[object], reached: Callable[[], bool], *, seconds: float = 120.0) -> None:
    """Starts it, and kills it with signal 9 once `reached()`."""
    process = warm.Popen(command(argv), cwd=ROOT, env=ENVIRONMENT)
    wait_for(reached, seconds=seconds, process=process, what="the moment of the kill")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def check_page(path: Path) -> None:
    """Whole, well-formed drawings, and nothing from a network."""
    page = path.read_text(encoding="utf-8")
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    assert page.rstrip().endswith("</html>") and not re.search(r"https?://|<script|\bnan\b", page)
