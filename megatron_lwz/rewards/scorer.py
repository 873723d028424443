"""One thread that feeds a model packs of waiting texts of similar length."""

from __future__ import annotations

import threading
from collections.abc import Sequence, Sized
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Text = TypeVar("Text", bound=Sized)
"""What a model scores; `len` is its number of tokens."""


_Scored = TypeVar("_Scored", bound=Sized, contravariant=True)


class Model(Protocol[_Scored]):
    """Scores texts."""

    def score(self, texts: Sequence[_Scored]) -> list[float]:
        """Returns one number per text, in order."""
        ...


@dataclass(frozen=True)
class _Waiting(Generic[Text]):
    text: Text
    score: Future[float]

    @property
    def bucket(self) -> int:
        """Bucket of the text. Texts of a bucket differ in length by a factor of two at most."""
        return len(self.text).bit_length()


class Overloaded(Exception):
    """The maximum number of texts wait already."""


class ScoringThread(Generic[Text]):
    """Feeds the model packs: the text that waited longest, and others of its bucket up to `tokens_per_batch` tokens.

    So a short text never waits for the rest of a long text's pack, and a long text is never delayed for ever.
    """

    def __init__(self, model: Model[Text], *, tokens_per_batch: int, most_waiting: int) -> None:
        self._model = model
        self._cap = tokens_per_batch
        self._most = most_waiting
        self._changed = threading.Condition()
        self._waiting: list[_Waiting[Text]] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self.packs = 0
        """Number of packs scored so far."""

    @property
    def waiting(self) -> int:
        """Number of waiting texts."""
        return len(self._waiting)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the current pack. Texts that still wait are cancelled."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        for item in self._waiting:
            item.score.cancel()

    def submit(self, texts: Sequence[Text]) -> list[Future[float]]:
        """Queues texts. Returns a future score for each. A cancelled future's text is not scored. Raises Overloaded."""
        items = [_Waiting(text, Future()) for text in texts]
        with self._changed:
            if len(self._waiting) + len(items) > self._most:
                raise Overloaded
            self._waiting += items
            self._changed.notify_all()
        return [item.score for item in items]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                pack = self._take()
            pack = [item for item in pack if item.score.set_running_or_notify_cancel()]
            if pack:
                self._read(pack)

    def _take(self) -> list[_Waiting[Text]]:
        bucket, room = self._waiting[0].bucket, self._cap
        taken: list[_Waiting[Text]] = []
        left: list[_Waiting[Text]] = []
        for item in self._waiting:
            if not taken or (item.bucket == bucket and len(item.text) <= room):
                taken.append(item)
                room -= len(item.text)
            else:
                left.append(item)
        self._waiting = left
        return taken

    def _read(self, pack: list[_Waiting[Text]]) -> None:
        self.packs += 1
        try:
            scores = self._model.score([item.text for item in pack])
        except Exception as error:  # e.g. out of memory: these texts fail, the next ones may fit
            for item in pack:
                item.score.set_exception(error)
            return
        for item, score in zip(pack, scores, strict=True):
            item.score.set_result(score)
