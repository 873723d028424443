"""The trainer's side of a rollout process: a stub of `Host` that forwards its calls to the process.

The controller, the journal's commits, rewards and batches need a Python interpreter. In a separate process they do not
block the interpreter from which training launches its kernels. The trainer waits for answers only, as it would wait for
the controller's thread.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, cast

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment, termination
from megatron_lwz.orchestrator.connection import Codec, Message, Tensors
from megatron_lwz.orchestrator.engines import client_maker
from megatron_lwz.orchestrator.process import Asked, HostProcess
from megatron_lwz.orchestrator.protocol import EngineControl, Host, Signature, Waiting, callback_kinds, signatures
from megatron_lwz.rollout.client import EngineClient
from megatron_lwz.rollout.open_stream import OpenStream
from megatron_lwz.types import WeightVersion


@contextmanager
def remote_host(config: Config, step: int, waiting: Waiting) -> Iterator[Host]:
    """Yields a host in a separate process, which ends with the block and with this process.

    The run continues from `step`.
    """
    process = HostProcess(["-m", "megatron_lwz.cli.rollout_host"], waiting)
    try:
        process.call("open", [config.model_dump(mode="json"), step])
        with termination.kept(process.keep):
            yield stub(process, client_maker(config, environment.get(config.rollout.api_key_env)))
    finally:
        process.close()


def stub(process: HostProcess, connect: Callable[..., EngineClient]) -> Host:
    """Returns a Host whose methods are calls to the process.

    `connect` makes clients of the engines to which rank 0 itself sends weights.
    """
    host = SimpleNamespace()
    codec = Codec(
        {
            EngineClient: (
                attrgetter("url"),
                lambda url: connect(url, tracker=RemoteTracker(host.engines, url)),
            )
        }
    )
    for name, signature in signatures(Host).items():
        *path, method = name.split(".")
        owner = host
        for part in path:
            owner = owner.__dict__.setdefault(part, SimpleNamespace())
        setattr(owner, method, _forward(process, codec, name, signature))
    return cast(Host, host)


def _forward(process: HostProcess, codec: Codec, name: str, signature: Signature) -> Callable[..., Any]:
    """Returns one method of the stub."""

    def call(*values: Any) -> Any:
        arguments: list[Any] = []
        tensors: Tensors = {}
        asked: Asked | None = None
        for value, kind in zip(values, signature.parameters, strict=True):
            if (kinds := callback_kinds(kind)) is None:
                arguments.append(codec.encode(value, kind, tensors))
            else:
                asked = partial(_call_back, codec, value, kinds)
                arguments.append(None)
        answer = process.call(name, arguments, tensors, asked=asked)
        return None if signature.streams else _decoded(codec, answer, signature.result)

    def stream(*values: Any) -> Iterator[Any]:
        call(*values)
        while items := _decoded(codec, process.call(name, following=True), signature.following):
            yield from items

    return stream if signature.streams else call


def _call_back(codec: Codec, function: Callable[..., None], kinds: list[Any], message: Message) -> None:
    """Runs a callback for the process here, in the thread that waits for the answer."""
    values = zip(message.content["asked"], kinds, strict=True)
    function(*(codec.decode(value, kind, message.tensors) for value, kind in values))


def _decoded(codec: Codec, message: Message, kind: Any) -> Any:
    return codec.decode(message.content["answer"], kind, message.tensors)


class RemoteTracker:
    """The `VersionTracker` of an engine whose streams the rollout process reads."""

    def __init__(self, engines: EngineControl, url: str) -> None:
        self._engines = engines
        self._url = url
        self.paused_at = -math.inf
        self._version = WeightVersion(0)

    @property
    def version(self) -> WeightVersion:
        """The weight version that was last set here."""
        return self._version

    @version.setter
    def version(self, version: WeightVersion) -> None:
        self._engines.name_weights(self._url, version)
        self._version = version

    def add_stream(self, stream: OpenStream) -> None:
        """Does nothing, because this client only sends weights."""

    async def read_up(self, since: float) -> None:
        """Returns when the rollout process has read the engine's streams. Both processes use the same clock."""
        await asyncio.to_thread(self._engines.read_up, self._url, since)
