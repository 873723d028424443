"""Models that a reward server runs on this machine, each from a Hugging Face folder: a reward model, a frozen language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from megatron_lwz.config import validate
from megatron_lwz.data.packing import build_micro_batch, unpack
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
from megatron_lwz.types import MicroBatch, SequenceBatch


class ServedModel:
    """Model and tokenizer of a folder."""

    def __init__(self, folder: Path, *, scalar: bool, dtype: str, max_length: int | None) -> None:
        """Loads the model, which has a scalar head or is a language model. `max_length` is in tokens; None: its own.

        Raises LwzError.
        """
        config = validate({"model": {"hf": str(folder)}, "training": {"precision": dtype}})
        self.arch = config.architecture()
        if (self.arch.head == "scalar") != scalar:
            fault = (
                f"is of a language model, not of a reward model: architectures must name {self.arch.family.scalar}"
                if scalar
                else "is of a reward model, not of a language model: likelihoods need a model with a vocabulary"
            )
            raise DataError(folder / "config.json", fault)
        self.tokenizer = Tokenizer(folder)
        self.max_length = served_length(self.arch, self.tokenizer, max_length)
        launch.initialize(config)
        (self._model,) = build_policy(config)
        load_policy([self._model], HfFolder(folder), finite=True)
        self._model.eval()
        self.checksum = checksum_policy([self._model])

    @torch.no_grad()
    def _run(self, batch: SequenceBatch, *, labels: bool) -> tuple[MicroBatch, torch.Tensor]:
        """Returns one pack of all sequences, which do not attend to each other, and the model's output for it."""
        pack = build_micro_batch(
            batch,
            range(len(batch)),
            tensor_size=1,
            context_size=1,
            context_rank=0,
            sequence_parallel=False,
            token_weights=torch.ones(len(batch.tokens)),
        )
        device = platform.device()
        output = self._model(
            pack.tokens[None].to(device),
            pack.positions[None].to(device),
            None,
            labels=pack.labels[None].to(device) if labels else None,
            packed_seq_params=packed_params(pack),
        )
        return pack, output


class ServedRewardModel(ServedModel):
    """A folder that transformers loads as a sequence classifier with one label, and the rendering of texts for it."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str = "fp32",
        max_length: int | None = None,
        template: Literal["markers", "chat"] | None = None,
    ) -> None:
        """`template` None: the one it was trained with, or Qwen's chat markup for a foreign model. Raises LwzError."""
        super().__init__(folder, scalar=True, dtype=dtype, max_length=max_length)
        self.rendering = load_rendering(folder) or Rendering("chat")
        if template is not None:
            self.rendering = Rendering(template, self.rendering.thinking, self.rendering.end)

    def score(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """Returns the scores of token lists, in order."""
        batch = text_batch([torch.tensor(text, dtype=torch.int32) for text in texts])
        pack, scores = self._run(batch, labels=False)
        return last_token_scores(scores, pack, len(texts))[0].tolist()


@dataclass(frozen=True)
class Continued:
    """The tokens of a context, at least one, and of the text that continues it; `len` counts both."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)


class ServedLanguageModel(ServedModel):
    """A frozen language model that tells how likely a continuation is."""

    def __init__(self, folder: Path, *, dtype: str = "fp32", max_length: int | None = None) -> None:
        """Loads the model. Raises LwzError."""
        super().__init__(folder, scalar=False, dtype=dtype, max_length=max_length)

    def score(self, texts: Sequence[Continued]) -> list[float]:
        """Returns the mean log-prob of the continuations' tokens, in nats per token, in order."""
        lengths = torch.tensor([len(text) for text in texts])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        tokens = torch.tensor([token for text in texts for token in (*text.context, *text.continuation)])
        nothing = torch.zeros(len(texts))
        contexts = torch.tensor([len(text.context) for text in texts])
        batch = SequenceBatch(tokens, offsets, contexts, torch.zeros(len(tokens)), nothing, nothing + 1)
        pack, statistics = self._run(batch, labels=True)
        values = torch.zeros(len(tokens), dtype=torch.float64)
        unpack(statistics[0], pack, values)
        ends = zip(offsets[:-1].tolist(), offsets[1:].tolist(), contexts.tolist(), strict=True)
        return [float(values[start + context : end].mean()) for start, end, context in ends]
