"""The policy for serving, loaded from a Hugging Face folder: on one rank, or shared by all ranks of a torchrun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from megatron_lwz.config import validate
from megatron_lwz.data.start_check import served_length
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import environment, exchange, host_memory, huge_pages, launch, platform
from megatron_lwz.distributed.parking import Parked
from megatron_lwz.errors import CheckpointError
from megatron_lwz.models.decoding import Decoder
from megatron_lwz.models.hf import HfFolder, checksum_policy, load_policy
from megatron_lwz.models.hf.name_map import tensor_shapes
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.qwen import build_policy


class ServedPolicy:
    """Model, tokenizer and limits of a served Hugging Face folder."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str = "fp32",
        max_length: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Builds and loads the model.

        `max_length` counts prompt + response tokens; None: the model's own. Rank 0 calls `check` before anything is loaded.
        Raises LwzError, on every rank alike, also that of `check`.
        """
        layout = {"tensor": environment.world_size(), "sequence": False}
        config = validate({"model": {"hf": str(folder)}, "training": {"precision": dtype}, "parallel": layout})
        self.arch = config.architecture()
        self.tokenizer = Tokenizer(folder)
        self.max_length = served_length(self.arch, self.tokenizer, max_length)
        launch.initialize(config)
        exchange.from_rank_zero(check)
        self._chunks: list[PolicyModel] = build_policy(config)
        huge_pages.gather(p for chunk in self._chunks for p in chunk.parameters())
        self._parked: Parked | None = None
        self.reload(str(folder))

    def decoder(self, slots: int, *, graphs: bool = False) -> Decoder:
        """Returns a decoder on the model. With `graphs` it records its steps as CUDA graphs."""
        return Decoder(self._chunks[0], max_length=self.max_length, slots=slots, graphs=graphs)

    def reload(self, path: str) -> None:
        """Replaces the weights in place by those of a Hugging Face folder. Raises CheckpointError, on every rank alike."""
        load_policy(
            self._chunks, self._folder(path), verify=False
        )  # the trainer compares the checksum of what was loaded

    def _folder(self, path: str) -> HfFolder:
        """Returns the folder if all ranks can load it. A rank that did so alone would compute with weights of its own.

        So that a refusal leaves the weights as they are, their numbers are looked at here: each rank takes a part of them.
        """
        fault, shapes = None, tensor_shapes(self.arch)
        try:
            folder = HfFolder(path)
            folder.check(shapes)
            mine = list(shapes)[environment.rank() :: environment.world_size()]
            fault = folder.poisoned(mine, self._chunks[0].config.params_dtype)
        except CheckpointError as error:
            fault = error.advice
        except OSError as error:
            fault = f"cannot be read ({error.strerror or type(error).__name__})"
        said = exchange.first_said(fault)
        if said is not None:
            raise CheckpointError(path, said)
        return folder

    def checksum(self) -> str:
        """Returns the checksum (hex) of the weights."""
        return checksum_policy(self._chunks)

    def leave(self, *, keep: bool) -> None:
        """Moves the weights from the GPU to host memory, or drops them if `keep` is False."""
        self._parked = Parked((p for chunk in self._chunks for p in chunk.parameters()), keep=keep)
        self._parked.out()
        if platform.has_gpu():
            torch.cuda.empty_cache()
        else:
            host_memory.give_back()

    def come_back(self) -> None:
        """Allocates memory again. Weights that were not kept are 0 until the next reload."""
        if self._parked is not None:
            self._parked.back()
            self._parked = None
