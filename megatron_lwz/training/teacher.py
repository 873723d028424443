"""The teacher of on-policy distillation: a frozen model whose log-probs of the policy's own tokens the KL term uses.

The policy writes, and the teacher judges every token (GKD, arXiv 2306.13649; MiniLLM, 2306.08543). The teacher may be of another
size and family than the policy, if it has the policy's tokens. It is split over the ranks in the policy's layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from megatron_lwz.config import Config
from megatron_lwz.config.sections import LoraSection
from megatron_lwz.data.start_check import beyond_context
from megatron_lwz.data.tokenizer import Tokenizer
from megatron_lwz.distributed import platform
from megatron_lwz.distributed.host_arena import HostArena
from megatron_lwz.errors import ConfigError, DataError, quote
from megatron_lwz.models.hf.load import HfFolder, load_policy
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.qwen import build_policy
from megatron_lwz.training.state import TrainState

KEY = "grpo.teacher"


class Teacher:
    """Model chunks that never change. With a GPU their weights lie in pinned host memory between the passes."""

    def __init__(self, chunks: Sequence[PolicyModel]) -> None:
        for chunk in chunks:
            chunk.requires_grad_(False)
        self._chunks = chunks
        self._weights = [weight for chunk in chunks for weight in chunk.parameters()]
        self._kept: list[Tensor] = []
        if platform.has_gpu():
            self._kept = _in_host_memory(self._weights)
            self._park()

    @contextmanager
    def at_work(self, state: TrainState) -> Iterator[Sequence[PolicyModel]]:
        """Inside the block the teacher's weights are on the device, beside the policy's."""
        del state
        for weight, kept in zip(self._weights, self._kept, strict=False):
            weight.data = kept.to(platform.device(), non_blocking=True)
        try:
            yield self._chunks
        finally:
            self._park()

    def _park(self) -> None:
        """Gives the memory on the device back. What still runs there was queued before, on the same stream."""
        for weight, kept in zip(self._weights, self._kept, strict=False):
            weight.data = kept


def _in_host_memory(weights: Sequence[Tensor]) -> list[Tensor]:
    """Returns copies of the tensors in one piece of pinned memory."""
    arena = HostArena([weight.nbytes for weight in weights], pinned=True)
    copies = [
        memory.view(weight.dtype).view(weight.shape) for memory, weight in zip(arena.tensors, weights, strict=True)
    ]
    for copy, weight in zip(copies, weights, strict=True):
        copy.copy_(weight.detach())
    return copies


def teacher_config(config: Config) -> Config:
    """Returns the run's config with the teacher, which has no adapter, as its model."""
    model = config.model.model_copy(
        update={"hf": config.grpo.teacher, "architecture": None, "preset": None, "head": None}
    )
    return config.model_copy(update={"model": model, "lora": LoraSection()})


def build_teacher(config: Config) -> list[PolicyModel]:
    """Returns this rank's chunks of the teacher, without weights. Their log-probs are at the rollouts' temperature."""
    chunks = build_policy(teacher_config(config))
    for chunk in chunks:
        chunk.temperature = config.rollout.temperature
    return chunks


def load_teacher(config: Config) -> Teacher:
    """Builds the teacher and loads its weights. Collective. Raises LwzError, on every rank alike."""
    chunks = build_teacher(config)
    load_policy(chunks, HfFolder(Path(str(config.grpo.teacher))), finite=True)
    return Teacher(chunks)


def check_teacher(config: Config) -> None:
    """Checks, before anything is loaded, that the teacher fits the policy's tokens, texts and layout. Raises LwzError."""
    if config.grpo.teacher is None:
        return
    folder, source = Path(config.grpo.teacher), str(Path(config.grpo.teacher) / "config.json")
    taught = teacher_config(config)
    try:
        arch = taught.architecture()
        if arch.head != "language":
            raise ConfigError(KEY, str(folder), "is a reward model: a teacher gives the log-probs of tokens")
        taught.check_layout(dist.get_world_size())
        tokens = config.data.max_prompt_tokens + config.rollout.max_new_tokens
        if fault := beyond_context(arch, tokens, source):
            raise ConfigError(KEY, str(folder), fault)
    except ConfigError as error:
        if error.key == KEY:
            raise
        raise ConfigError(KEY, str(folder), f"cannot teach in this run ({error})") from error
    check_same_tokens(Tokenizer(config.tokenizer_dir()), Tokenizer(folder))


def check_same_tokens(policy: Tokenizer, teacher: Tokenizer) -> None:
    """Raises DataError unless the teacher has every token of the policy under the same id."""
    theirs = teacher.vocabulary()
    wrong = [(number, token) for token, number in policy.vocabulary().items() if theirs.get(token) != number]
    if wrong:
        number, token = min(wrong)
        found = f"under id {theirs[token]}" if token in theirs else "not at all"
        advice = f"has the policy's token {quote(token)} (id {number}) {found}, and {len(wrong) - 1} more so"
        raise DataError(teacher.folder / "tokenizer.json", f"{advice}: a teacher must have the policy's tokens")
