"""Engines that can be killed: the synthetic engine in a process of its own, at one address for all its lives."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from megatron_lwz.http.ports import free_port
from megatron_lwz.http.process import ServerProcess
from tests.support import warm
from tests.support.stages import variables
from tests.support.synthetic_engine import Engine, serve

WITHOUT_WEIGHTS = "9.9.lost"
"""What an engine calls its weights when it has just started: no rollout may be written under this name."""


class EngineProcess(ServerProcess):
    """Answers are a function of (seed, position): `pause` seconds between deltas of two tokens."""

    def __init__(self, folder: Path, name: str, pause: float) -> None:
        port = free_port()
        super().__init__(
            [sys.executable, "-m", "tests.end_to_end.engine_process", str(port), str(pause)],
            url=f"http://127.0.0.1:{port}",
            token=None,
            env=variables(),
            log_path=folder / f"{name}.log",
        )

    def start(self) -> None:
        """As its base, but forked."""
        with warm.forking():
            super().start()

    def kill(self) -> None:
        """kill −9; returns when it is gone."""
        assert self.pid is not None
        os.killpg(self.pid, signal.SIGKILL)
        self.stop()


async def main(port: int, pause: float) -> None:
    """Serves until killed."""
    engine = Engine(length=lambda seed: 30 + seed % 60, delta=2, pause=pause, version=WITHOUT_WEIGHTS)
    await serve(engine, port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
