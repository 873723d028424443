"""The engine's thread: owns the model, steps the decoder, and runs commands between two steps."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from megatron_lwz.errors import LwzError
from megatron_lwz.models.decoding import NotFiniteError, Sampled
from megatron_lwz.models.decoding_cache import CachedSequence
from megatron_lwz.rollout.engine.generation import Generation
from megatron_lwz.rollout.limits import EngineLoad
from megatron_lwz.types import FinishReason, WeightVersion

Answer = TypeVar("Answer")
WEIGHTS, CACHE = "weights", "kv_cache"  # vLLM's tags
log = logging.getLogger(__name__)


class AsleepError(LwzError):
    """The command needs memory that the sleeping engine has released."""


class Weights(Protocol):
    """The weights that the decoder runs."""

    def reload(self, path: str) -> None:
        """Replaces the weights in place by those of a Hugging Face folder.

        Raises CheckpointError and then changes nothing.
        """
        ...

    def checksum(self) -> str:
        """Returns the checksum (hex) of the weights."""
        ...

    def leave(self, *, keep: bool) -> None:
        """Frees the GPU memory of the weights. With `keep` they stay in host memory."""
        ...

    def come_back(self) -> None:
        """Allocates the memory again. It holds zeros unless the weights were kept."""
        ...


class Decoding(Protocol):
    """The decoder that the engine steps: see `models.decoding.Decoder`."""

    def __len__(self) -> int: ...

    @property
    def writing(self) -> int:
        """Number of sequences that hold a slot."""
        ...

    @property
    def cache_use(self) -> float:
        """Fraction of the cache in use."""
        ...

    def add(self, sequence: CachedSequence) -> None:
        """Queues a new sequence."""
        ...

    def remove(self, sequence: CachedSequence) -> None:
        """Ends a sequence."""
        ...

    def forget_prefixes(self) -> None:
        """Drops cached prompts."""
        ...

    def release(self) -> None:
        """Frees all keys and values."""
        ...

    def step(self) -> list[Sampled]:
        """Returns one token for every running sequence. Raises NotFiniteError if its logits allow none."""
        ...


class EngineThread:
    """Steps the decoder in a thread of its own. Every public method may be called from any thread.

    Futures complete between two steps.
    """

    def __init__(self, decoder: Decoding, weights: Weights) -> None:
        self._decoder = decoder
        self._weights = weights
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._generations: dict[CachedSequence, Generation] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.paused = False
        self.asleep: frozenset[str] = frozenset()
        """The parts of WEIGHTS and CACHE that have left the GPU. No token is generated until all are back."""
        self.version = str(WeightVersion(0))
        self.failure: str | None = None
        """Why the engine cannot continue; None while it works."""
        self._weights_failed = False

    def start(self) -> None:
        """Starts stepping."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the current step. Running requests are left as they are."""
        self._commands.put(self._stop)
        self._thread.join()

    def submit(self, generation: Generation) -> Future[None]:
        """Queues a request. The future fails with RuntimeError once the engine has failed."""

        def add() -> None:
            if self.failure:
                raise RuntimeError(self.failure)
            self._generations[generation.sequence] = generation
            self._decoder.add(generation.sequence)

        return self._call(add)

    def abort(self, request_ids: Collection[str] | None) -> Future[int]:
        """Ends requests with reason `abort`; None means all.

        Unknown ids are ignored. The future gives the number of ended requests.
        """

        def end() -> int:
            chosen = [g for g in self._generations.values() if request_ids is None or g.id in request_ids]
            for generation in chosen:
                self._finish(generation, FinishReason.ABORT)
            return len(chosen)

        return self._call(end)

    def discard(self, generation: Generation) -> None:
        """Ends one request whose client is gone, if it still runs."""

        def end() -> None:
            if generation.sequence in self._generations:
                self._finish(generation, FinishReason.ABORT)

        self._commands.put(end)

    def pause(self, *, abort: bool) -> Future[None]:
        """Stops stepping after all tokens so far were delivered. Running requests stay, or end if `abort`."""

        def hold() -> None:
            self.paused = True
            for generation in list(self._generations.values()):
                if abort:
                    self._finish(generation, FinishReason.ABORT)
                else:
                    generation.flush(self.version, time.monotonic())

        return self._call(hold)

    def resume(self) -> Future[None]:
        """Resumes stepping."""

        def go() -> None:
            self.paused = False

        return self._call(go)

    def sleep(self, *, keep_weights: bool) -> Future[None]:
        """Ends all requests and frees the memory of weights and key-value cache."""

        def lie_down() -> None:
            for generation in list(self._generations.values()):
                self._finish(generation, FinishReason.ABORT)
            self._decoder.release()
            if WEIGHTS not in self.asleep:
                self._weights.leave(keep=keep_weights)
            self.asleep = frozenset((WEIGHTS, CACHE))

        return self._call(lie_down)

    def wake_up(self, tags: Collection[str]) -> Future[None]:
        """Allocates memory for the weights or the cache again (no tags: both).

        With both back, a paused engine resumes.
        """

        def rise() -> None:
            rising = self.asleep & frozenset(tags or self.asleep)
            if WEIGHTS in rising:
                self._weights.come_back()
            self.asleep -= rising
            if rising and not self.asleep:
                self.paused = False

        return self._call(rise)

    def reload(self, path: str) -> Future[None]:
        """Loads new weights from a folder. Running requests continue with the key-value cache of the old ones.

        An engine that failed because its weights gave no finite logits continues.
        """

        def load() -> None:
            self._require_weights()
            self._weights.reload(path)
            self._decoder.forget_prefixes()
            if self._weights_failed:
                self.failure, self._weights_failed = None, False

        return self._call(load)

    def forget_prefixes(self) -> Future[None]:
        """Drops cached prefixes."""
        return self._call(self._decoder.forget_prefixes)

    def set_version(self, version: str) -> Future[None]:
        """Sets the version of the weights that generate from now on.

        Earlier tokens are delivered under the old version.
        """

        def rename() -> None:
            self._flush_all()
            self.version = version

        return self._call(rename)

    def checksum(self) -> Future[str]:
        """Computes the checksum (hex) of the running weights."""

        def add_up() -> str:
            self._require_weights()
            return self._weights.checksum()

        return self._call(add_up)

    def load(self) -> Future[EngineLoad]:
        """Measures the load: requests that hold a slot, requests that wait, and cache use.

        No request is ever preempted.
        """
        decoder = self._decoder
        return self._call(lambda: EngineLoad(decoder.cache_use, decoder.writing, len(decoder) - decoder.writing))

    def _call(self, action: Callable[[], Answer]) -> Future[Answer]:
        future: Future[Answer] = Future()

        def run() -> None:
            try:
                future.set_result(action())
            except Exception as error:  # the error belongs to the caller; the engine continues
                future.set_exception(error)

        self._commands.put(run)
        return future

    def _require_weights(self) -> None:
        if WEIGHTS in self.asleep:
            raise AsleepError("its weights sleep: /wake_up?tags=weights first")

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        while not self._stopping:
            self._run_commands(wait=self._idle())
            if self._idle() or self._stopping:
                continue
            try:
                self._step()
            except NotFiniteError as error:  # the decoder is as it was
                log.error("%s", error)
                self.failure, self._weights_failed = str(error), True
                for generation in list(self._generations.values()):
                    self._finish(generation, FinishReason.ABORT)
            except Exception as error:  # a broken step must reach the requests and /health, not die in a thread
                log.exception("the engine failed")
                self.failure = f"{type(error).__name__}: {error}"
                for generation in self._generations.values():
                    generation.finish(self.version, FinishReason.ABORT)
                self._generations.clear()

    def _idle(self) -> bool:
        return self.paused or bool(self.asleep) or self.failure is not None or not len(self._decoder)

    def _run_commands(self, *, wait: bool) -> None:
        if wait:
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()

    def _step(self) -> None:
        for sampled in self._decoder.step():
            generation = self._generations[sampled.sequence]
            end = generation.take(sampled.token, sampled.logprob)
            if end is not None:
                self._finish(generation, *end)
        now = time.monotonic()
        for generation in self._generations.values():
            if generation.due(now):
                generation.flush(self.version, now)

    def _flush_all(self) -> None:
        for generation in self._generations.values():
            generation.flush(self.version, time.monotonic())

    def _finish(self, generation: Generation, *end: Any) -> None:
        del self._generations[generation.sequence]
        self._decoder.remove(generation.sequence)
        generation.finish(self.version, *end)
