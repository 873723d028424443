"""The trainer's side of a rollout process: the same calls as RolloutHost's, answered by one that runs elsewhere.

The controller, the journal's commits, rewards and batches need an interpreter; in a process of their own they do not hold
the one that training launches its kernels from. The trainer waits for answers only, as it would for the controller's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment, termination
from megatron_lwz.evaluation.in_loop import Metrics
from megatron_lwz.orchestrator.engines import client_maker
from megatron_lwz.orchestrator.experience import Experience
from megatron_lwz.orchestrator.host import Waiting
from megatron_lwz.orchestrator.process import HostProcess
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.open_stream import OpenStream
from megatron_lwz.run_paths import RunPaths
from megatron_lwz.types import SequenceBatch, WeightVersion


@contextmanager
def remote_host(config: Config, run: RunPaths, step: int, waiting: Waiting) -> Iterator[RemoteHost]:
    """A host in a process of its own, which ends with the block and with this process. The run goes on from `step`."""
    process = HostProcess(["-m", "megatron_lwz.cli.rollout_host", str(run.config), "--step", str(step)])
    try:
        process.call("open")
        with termination.kept(process.keep):
            yield RemoteHost(process, config, waiting)
    finally:
        process.close()


class RemoteHost:
    """RolloutHost's calls; what they mean stands there."""

    def __init__(self, process: HostProcess, config: Config, waiting: Waiting) -> None:
        self._process = process
        self._waiting = waiting
        self.engines = RemoteEngines(process, client_maker(config, environment.get(config.rollout.api_key_env)))

    @contextmanager
    def connected(self, version: WeightVersion, folder: Path) -> Iterator[None]:
        """See RolloutHost; it ends with the process."""
        self._call("connect", str(version), str(folder))
        yield

    def set_version(self, version: WeightVersion) -> None:
        """See RolloutHost."""
        self._call("set_version", str(version))

    def experience(self, step: int) -> Iterator[Experience]:
        """See RolloutHost."""
        self._call("experience", step)
        last = False
        while not last:
            part = self._process.exchange("next_part", waiting=self._waiting)
            last = part.content["last"]
            yield Experience(SequenceBatch(**part.tensors), part.content["metrics"], last=last)

    def trained(self, step: int) -> None:
        """See RolloutHost."""
        self._call("trained", step)

    def settle(self) -> None:
        """See RolloutHost."""
        self._call("settle")

    def checkpointed(self, step: int) -> None:
        """See RolloutHost."""
        self._call("checkpointed", step)

    def lengths(self, step: int) -> Metrics:
        """See RolloutHost."""
        return dict(self._call("lengths", step))

    def take_up_evaluations(self, version: WeightVersion, folder: Path) -> None:
        """See RolloutHost."""
        self._call("take_up_evaluations", str(version), str(folder))

    def evaluate(self, version: WeightVersion, folder: Path) -> None:
        """See RolloutHost."""
        self._call("evaluate", str(version), str(folder))

    def evaluated(self) -> Iterator[tuple[int, Metrics]]:
        """See RolloutHost."""
        self._call("evaluated")
        while (found := self._call("next_evaluated")) is not None:
            yield found["step"], found["metrics"]

    def finish_evaluations(self) -> None:
        """See RolloutHost."""
        self._call("finish_evaluations")

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._process.call(name, *arguments, waiting=self._waiting)


class RemoteEngines:
    """The pool's calls that the trainer makes (`EngineControl`). `connect` makes clients for what rank 0 itself sends."""

    def __init__(self, process: HostProcess, connect: Callable[..., EngineClient]) -> None:
        self._process = process
        self._connect = connect

    def push_weights(self, path: Path, version: WeightVersion) -> None:
        """See EnginePool."""
        self._process.call("push_weights", str(path), str(version))

    def push_together(self, version: WeightVersion, send: Callable[[Sequence[EngineClient]], None]) -> None:
        """See EnginePool. `send` runs here, in the caller's thread."""

        def asked(urls: Any) -> None:
            send([self._connect(url, tracker=RemoteTracker(self._process, url)) for url in urls])

        self._process.call("push_together", str(version), asked=asked)

    def weight_checksum(self) -> dict[str, str]:
        """See EnginePool."""
        return dict(self._process.call("weight_checksum"))

    def wake(self, part: str) -> None:
        """See EnginePool."""
        self._process.call("wake", part)

    def sleep(self) -> None:
        """See EnginePool."""
        self._process.call("sleep")


class RemoteTracker:
    """Of an engine whose streams the rollout process reads (`VersionTracker`)."""

    def __init__(self, process: HostProcess, url: str) -> None:
        self._process = process
        self._url = url
        self._version = WeightVersion(0)

    @property
    def version(self) -> WeightVersion:
        """The name last given here."""
        return self._version

    @version.setter
    def version(self, version: WeightVersion) -> None:
        self._process.call("name_weights", self._url, str(version))
        self._version = version

    def add_stream(self, stream: OpenStream) -> None:
        """Nothing: such a client only sends weights."""

    async def read_up(self, since: float) -> None:
        """Has the rollout process read; both measure time by one clock."""
        await asyncio.to_thread(self._process.call, "read_up", self._url, since)
