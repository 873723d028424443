"""The place of a campaign: a tiny policy, two engines and a reward model's server, and an undisturbed run for each layout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_lwz.http.orphan import dying_with_us
from megatron_lwz.http.ports import free_port
from tests.support import warm
from tests.support.chaos.control import Control
from tests.support.chaos.scripted_engine import ANSWER_TAG
from tests.support.grpo_runs import command, write_example
from tests.support.paths import ROOT
from tests.support.stages import variables
from tests.support.synthetic_engine import TOKEN

PAUSE = 0.01
"""Seconds between two pieces of a stream: a rollout then lasts for several commits."""


JUDGE_RETRIES = 40
"""So many that a reward model which is down for a while is asked again until it answers."""


class ServerLife:
    """A scripted server at one address, which is started again after a kill."""

    def __init__(self, name: str, board: Control, folder: Path, *more: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        line = [sys.executable, "-m", f"tests.support.chaos.scripted_{name}", str(board.path), str(port), *more]
        self._line = dying_with_us(line)
        self._log = (folder / f"{name}_{port}.log").open("wb")
        self.start()

    def start(self) -> None:
        self._process = warm.Popen(
            self._line, cwd=ROOT, env=variables(), stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Bench:
    """A context manager. `steps` of GRPO; `sections` change the config as `write_example` takes them."""

    def __init__(
        self, folder: Path, *, steps: int = 6, sections: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.steps = folder, steps
        self.board = Control(folder / "control")
        self.engines = [ServerLife("engine", self.board, folder, str(PAUSE)) for _ in range(2)]
        self.judge = ServerLife("judge", self.board, folder)
        tree: dict[str, dict[str, Any]] = {
            "rollout": {
                "urls": [engine.url for engine in self.engines],
                "controller": "process",
                "max_new_tokens": 60,
                "retries": 50,
                "pool": {"probe_interval": 0.2},
            },
            "data": {"held_out_prompts": None},
            "reward": {"writing": {"url": self.judge.url, "timeout": 1.0, "retries": JUDGE_RETRIES, "backoff": 0.05}},
            "training": {"steps": steps},
        }
        for name, values in (sections or {}).items():
            tree[name] = {**tree.get(name, {}), **values}
        self.config = write_example(folder, words=[ANSWER_TAG], **tree)

    def start(
        self, run: Path, output: Path, *, ranks: int = 1, restarts: int = 0, more: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """The main job in `run`, with everything that it says in `output`."""
        line = command(self.config, f"run.dir={run}", f"parallel.tensor={ranks}", *more, ranks=ranks, restarts=restarts)
        with output.open("wb") as stream:
            return warm.Popen(line, cwd=ROOT, env=self._variables(), stdout=stream, stderr=subprocess.STDOUT)

    @cache  # noqa: B019 (a campaign has one bench)
    def undisturbed(self, ranks: int) -> tuple[Path, int]:
        """The folder of a run that nothing happened to, and the number of its calls that change files."""
        run = self.folder / f"undisturbed_{ranks}"
        self.board.watch(run)
        output = self.folder / f"undisturbed_{ranks}.log"
        assert self.start(run, output, ranks=ranks).wait(900) == 0, output.read_text()[-3000:]
        return run, self.board.calls

    def undisturbed_calls(self, ranks: int) -> int:
        """How many calls of a whole run change files."""
        return self.undisturbed(ranks)[1]

    def close(self) -> None:
        self.board.calm()
        for server in (*self.engines, self.judge):
            server.kill()

    def _variables(self) -> dict[str, str]:
        return variables() | {
            "LWZ_CHAOS": os.fspath(self.board.path),
            "LWZ_ENGINE_TOKEN": TOKEN,
            "LWZ_REWARD_TOKEN": TOKEN,
        }

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()
