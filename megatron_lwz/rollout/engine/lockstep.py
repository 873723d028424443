"""One engine over several tensor-parallel ranks: rank 0 serves, and all ranks make its calls to decoder and weights together.

Rank 0 sends every call, as JSON, before it makes it itself. A sequence draws the same noise on every rank, from the same
logits, so the ranks need to tell each other nothing else.
"""

from __future__ import annotations

import datetime
import signal
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from megatron_lwz.distributed import exchange, heartbeat
from megatron_lwz.errors import LwzError
from megatron_lwz.models.decoding import Decoder, Sampled
from megatron_lwz.models.decoding_cache import CachedSequence
from megatron_lwz.rollout.engine.core import Weights

_FOR_EVER = datetime.timedelta(days=3650)
"""Requests may be long in coming. A rank whose connection ends notices at once."""


class Calls:
    """How rank 0 tells the others what to do. Collective to create."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_FOR_EVER)

    def send(self, name: str, *arguments: Any) -> None:
        """On rank 0: sends one call. Raises RuntimeError when another rank is gone."""
        exchange.broadcast_json([name, *arguments], group=self._group)

    def receive(self) -> list[Any]:
        """On the other ranks: returns the next call. Raises RuntimeError when rank 0 is gone."""
        answer: list[Any] = exchange.broadcast_json(group=self._group)
        return answer


class LeadingDecoder:
    """Rank 0's decoder, with the interface of `Decoder`."""

    def __init__(self, decoder: Decoder, calls: Calls) -> None:
        self._decoder, self._calls = decoder, calls
        self._names: dict[CachedSequence, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._decoder)

    @property
    def writing(self) -> int:
        """Number of sequences that hold a slot."""
        return self._decoder.writing

    @property
    def cache_use(self) -> float:
        """Fraction of the cache in use."""
        return self._decoder.cache_use

    def add(self, sequence: CachedSequence) -> None:
        """Queues a new sequence."""
        self._names[sequence] = self._next
        settings = (sequence.prompt, sequence.temperature, sequence.top_p, sequence.seed)
        self._calls.send("add", self._next, *settings)
        self._next += 1
        self._decoder.add(sequence)

    def remove(self, sequence: CachedSequence) -> None:
        """Ends a sequence. Unknown ones are ignored."""
        if (name := self._names.pop(sequence, None)) is not None:
            self._calls.send("remove", name)
            self._decoder.remove(sequence)

    def forget_prefixes(self) -> None:
        """Drops cached prompts."""
        self._calls.send("forget_prefixes")
        self._decoder.forget_prefixes()

    def release(self) -> None:
        """Frees all keys and values."""
        self._calls.send("release")
        self._decoder.release()

    def step(self) -> list[Sampled]:
        """Returns one token for every running sequence."""
        self._calls.send("step")
        return self._decoder.step()


class LeadingWeights:
    """Rank 0's weights, with the interface of `Weights`."""

    def __init__(self, weights: Weights, calls: Calls) -> None:
        self._weights, self._calls = weights, calls

    def reload(self, path: str) -> None:
        """Replaces the weights on all ranks. Raises CheckpointError."""
        self._calls.send("reload", path)
        self._weights.reload(path)

    def checksum(self) -> str:
        """Returns the checksum (hex) of the whole weights."""
        self._calls.send("checksum")
        return self._weights.checksum()

    def leave(self, *, keep: bool) -> None:
        """Frees the GPU memory of the weights on all ranks."""
        self._calls.send("leave", keep)
        self._weights.leave(keep=keep)

    def come_back(self) -> None:
        """Allocates the memory again."""
        self._calls.send("come_back")
        self._weights.come_back()


def follow(decoder: Decoder, weights: Weights, calls: Calls) -> None:
    """Makes rank 0's calls on another rank until it says `stop`. Raises LwzError when rank 0 is gone.

    Signals are rank 0's business: it ends the others.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sequences: dict[int, CachedSequence] = {}

    def add(name: int, prompt: list[int], temperature: float, top_p: float, seed: int) -> None:
        sequences[name] = CachedSequence(tuple(prompt), temperature, top_p, seed)
        decoder.add(sequences[name])

    actions: dict[str, Callable[..., object]] = {
        "add": add,
        "remove": lambda name: decoder.remove(sequences.pop(name)),
        "forget_prefixes": decoder.forget_prefixes,
        "release": decoder.release,
        "step": decoder.step,
        "reload": weights.reload,
        "checksum": weights.checksum,
        "leave": lambda keep: weights.leave(keep=keep),
        "come_back": weights.come_back,
    }
    while True:
        try:
            name, *arguments = calls.receive()
        except RuntimeError as error:
            raise LwzError(f"rank 0 of the engine is gone: {error}") from error
        if name == "stop":
            return
        heartbeat.moved()
        try:
            actions[name](*arguments)
        except LwzError:
            continue  # rank 0 got the same error and answers with it
