"""A reward model on this machine, loaded from a Hugging Face folder.

One thread feeds it packs of texts of similar length.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from megatron_lwz.config import validate
from megatron_lwz.data.packing import build_micro_batch
from megatron_lwz.data.preferences.batches import text_batch
from megatron_lwz.data.preferences.rendering import Rendering, load_rendering
from megatron_lwz.data.start_check import served_length
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import launch, platform
from megatron_lwz.errors import DataError
from megatron_lwz.models.hf import HfFolder, checksum_policy, load_policy
from megatron_lwz.models.logprobs import packed_params
from megatron_lwz.models.qwen import build_policy
from megatron_lwz.models.reward_model import last_token_scores


class ServedRewardModel:
    """Model, tokenizer and rendering of a folder that transformers loads as a sequence classifier with one label."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str = "fp32",
        max_length: int | None = None,
        template: Literal["markers", "chat"] | None = None,
    ) -> None:
        """Loads the model. `max_length` is in tokens; None: the model's own.

        `template` None: the one it was trained with, or Qwen's chat markup for a foreign model. Raises LwzError.
        """
        config = validate({"model": {"hf": str(folder)}, "training": {"precision": dtype}})
        self.arch = config.architecture()
        if self.arch.head != "scalar":
            advice = f"architectures must name {self.arch.family.scalar}"
            raise DataError(folder / "config.json", f"is of a language model, not of a reward model: {advice}")
        self.tokenizer = Tokenizer(folder)
        self.rendering = load_rendering(folder) or Rendering("chat")
        if template is not None:
            self.rendering = Rendering(template, self.rendering.thinking, self.rendering.end)
        self.max_length = served_length(self.arch, self.tokenizer, max_length)
        launch.initialize(config)
        (self._model,) = build_policy(config)
        load_policy([self._model], HfFolder(folder))
        self._model.eval()
        self.checksum = checksum_policy([self._model])

    @torch.no_grad()
    def score(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """Returns the scores of token lists, in order.

        They are one pack without padding and do not attend to each other.
        """
        batch = text_batch([torch.tensor(text, dtype=torch.int32) for text in texts])
        pack = build_micro_batch(
            batch,
            range(len(texts)),
            tensor_size=1,
            context_size=1,
            context_rank=0,
            sequence_parallel=False,
            token_weights=torch.ones(len(batch.tokens)),
        )
        device = platform.device()
        scores = self._model(
            pack.tokens[None].to(device), pack.positions[None].to(device), None, packed_seq_params=packed_params(pack)
        )
        return last_token_scores(scores, pack, len(texts))[0].tolist()


@dataclass(frozen=True)
class _Waiting:
    tokens: tuple[int, ...]
    score: Future[float]

    @property
    def bucket(self) -> int:
        """Bucket of the text. Texts of a bucket differ in length by a factor of two at most."""
        return len(self.tokens).bit_length()


class Overloaded(Exception):
    """The maximum number of texts wait already."""


class ScoringThread:
    """Feeds the model packs: the text that waited longest, and others of its bucket up to `tokens_per_batch` tokens.

    So a short text never waits for the rest of a long text's pack, and a long text is never delayed for ever.
    """

    def __init__(self, model: ServedRewardModel, *, tokens_per_batch: int, most_waiting: int) -> None:
        self._model = model
        self._cap = tokens_per_batch
        self._most = most_waiting
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
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

    def submit(self, texts: Sequence[Sequence[int]]) -> list[Future[float]]:
        """Queues texts. Returns a future score for each. A cancelled future's text is not scored. Raises Overloaded."""
        items = [_Waiting(tuple(text), Future()) for text in texts]
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

    def _take(self) -> list[_Waiting]:
        bucket, room = self._waiting[0].bucket, self._cap
        taken: list[_Waiting] = []
        left: list[_Waiting] = []
        for item in self._waiting:
            if not taken or (item.bucket == bucket and len(item.tokens) <= room):
                taken.append(item)
                room -= len(item.tokens)
            else:
                left.append(item)
        self._waiting = left
        return taken

    def _read(self, pack: list[_Waiting]) -> None:
        self.packs += 1
        try:
            scores = self._model.score([item.tokens for item in pack])
        except Exception as error:  # e.g. out of memory: these texts fail, the next ones may fit
            for item in pack:
                item.score.set_exception(error)
            return
        for item, score in zip(pack, scores, strict=True):
            item.score.set_result(score)
