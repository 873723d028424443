"""Continuous batching on the policy's own Megatron model: prompts are computed once, then all sequences step together.

The model's own modules do the computation (embedding, norms, linear layers, output layer), so engine and trainer share
weights and kernels. Tensor parallelism or one rank, no pipeline.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_lwz.errors import LwzError
from megatron_lwz.kernels import decode_attention
from megatron_lwz.models.decoding_buckets import BucketRows
from megatron_lwz.models.decoding_cache import CachedSequence, Prefix, PrefixCache
from megatron_lwz.models.decoding_forward import DecodingForward
from megatron_lwz.models.decoding_graph import StepRecorder
from megatron_lwz.models.decoding_pages import PagedRows
from megatron_lwz.models.decoding_sampling import Sampler
from megatron_lwz.models.logprobs import PolicyModel


@dataclass(frozen=True)
class Sampled:
    """One new token of a sequence with its log-prob (see `Sampler.draw`)."""

    sequence: CachedSequence
    token: int
    logprob: float


class NotFiniteError(LwzError):
    """The model's logits are NaN or infinite, so no token can be drawn from them."""


class Decoder:
    """Decodes up to `slots` sequences at once; other sequences wait. Not thread-safe.

    `max_length` bounds prompt + response in tokens; the caller removes a sequence before it would exceed it.
    `prefill_tokens` is the number of prompt tokens computed per step; it limits how long a long prompt delays the other
    sequences. With `graphs`, decode steps are recorded as CUDA graphs; it needs a GPU.
    """

    def __init__(
        self, model: PolicyModel, *, max_length: int, slots: int, prefill_tokens: int = 2048, graphs: bool = False
    ) -> None:
        self.slots = slots
        self._recorder = StepRecorder() if graphs else None
        self._capacity = slots * max_length
        self._forward = DecodingForward(model, max_length)
        self._prefill_tokens = prefill_tokens
        self._rows = _rows(self._forward)
        self._prefixes = PrefixCache(self._forward.cache_shape, max_tokens=max(16384, max_length))
        self._waiting: deque[CachedSequence] = deque()
        self._pending: dict[CachedSequence, Prefix] = {}
        self._batch: _Batch | None = None
        self._writing: set[CachedSequence] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._writing)

    @property
    def writing(self) -> int:
        """Number of sequences that hold a slot."""
        return len(self._writing)

    @property
    def cache_use(self) -> float:
        """Fraction of the cache in use: cached tokens of all slots over slots × longest sequence."""
        return sum(sequence.length for sequence in self._writing) / self._capacity

    def add(self, sequence: CachedSequence) -> None:
        """Queues a new sequence (its prompt must not be empty)."""
        self._waiting.append(sequence)

    @torch.inference_mode()
    def remove(self, sequence: CachedSequence) -> None:
        """Ends a waiting or running sequence and frees its slot. Unknown sequences are ignored."""
        if sequence in self._writing:
            self._writing.remove(sequence)
            self._rows.remove(sequence)
            self._batch = None
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
            self._pending.pop(sequence, None)

    def forget_prefixes(self) -> None:
        """Drops cached prompts, also partly computed ones. Call it when the weights change."""
        self._prefixes.clear()
        self._pending.clear()

    def release(self) -> None:
        """Frees all keys and values. No sequence may be left. Memory is allocated again when it is needed."""
        assert not len(self), "sequences would lose their keys and values"
        self.forget_prefixes()
        self._rows, self._batch = _rows(self._forward), None
        if self._recorder is not None:
            self._recorder = StepRecorder()

    @torch.inference_mode()
    def step(self) -> list[Sampled]:
        """Returns one token for every running sequence, and the first token of those that start.

        Raises NotFiniteError, on every rank alike.
        """
        return self._decode() + self._start()

    def _decode(self) -> list[Sampled]:
        if not self._writing:
            return []
        if self._rows.grow() or self._batch is None:
            self._batch = _Batch(self._rows, self._forward)
        return self._batch.step(self._recorder)

    def _start(self) -> list[Sampled]:
        """Computes waiting prompts. Gives each sequence whose prompt is complete a row and its first token."""
        free = self.slots - len(self._writing)
        candidates = [self._waiting[i] for i in range(min(free, len(self._waiting)))]
        if not candidates:
            return []
        for sequence in candidates:
            if sequence not in self._pending:
                self._pending[sequence] = self._prefixes.get(sequence.prompt)
        self._forward.prefill(dict.fromkeys(self._pending[s] for s in candidates), self._prefill_tokens)
        ready = [s for s in candidates if self._pending[s].logits is not None]
        if not ready:
            return []
        logits = torch.stack([logits for s in ready if (logits := self._pending[s].logits) is not None])
        for sequence in ready:
            self._waiting.remove(sequence)
            self._writing.add(sequence)
            sequence.length = len(sequence.prompt)
            self._rows.add(sequence, self._pending.pop(sequence))
        self._batch = None
        return _draw(_sampler(ready, logits.device), ready, logits)[1]


class _Batch:
    """The sequences of a decode step in row order, with all tensors that stay the same from step to step."""

    def __init__(self, rows: PagedRows | BucketRows, forward: DecodingForward) -> None:
        self._forward = forward
        self._attention = rows.attention(forward)
        self._sequences = self._attention.sequences
        device = forward.cache_shape.device
        self._tokens = torch.tensor([s.last_token for s in self._sequences], device=device)
        self._positions = torch.tensor([s.length for s in self._sequences], device=device)
        self._sampler = _sampler(self._sequences, device)

    def step(self, recorder: StepRecorder | None) -> list[Sampled]:
        shapes = self._attention.advance()
        logits = self._compute() if recorder is None else recorder.run(self._compute, (self, shapes))
        for sequence in self._sequences:
            sequence.length += 1
        self._positions += 1
        tokens, sampled = _draw(self._sampler, self._sequences, logits)
        self._tokens.copy_(tokens)
        return sampled

    def _compute(self) -> Tensor:
        return self._forward(self._tokens, self._attention.at(self._positions))


def _rows(forward: DecodingForward) -> PagedRows | BucketRows:
    shape = forward.cache_shape
    paged = decode_attention.serves(forward.queries, shape.head_dim, shape.dtype, shape.device)
    return PagedRows(shape) if paged else BucketRows(shape)


def _sampler(sequences: list[CachedSequence], device: torch.device) -> Sampler:
    return Sampler(
        [s.temperature for s in sequences], [s.top_p for s in sequences], [s.seed for s in sequences], device=device
    )


def _draw(sampler: Sampler, sequences: list[CachedSequence], logits: Tensor) -> tuple[Tensor, list[Sampled]]:
    """Draws the token at position `length` of every sequence."""
    tokens, logprobs = sampler.draw(logits, np.array([s.length for s in sequences], dtype=np.uint64))
    read = torch.stack((tokens.double(), logprobs.double())).tolist()  # at once: the host waits for a GPU here
    if not math.isfinite(sum(read[1])):  # a logit that is NaN or +inf makes the log-prob of any token so
        raise NotFiniteError(
            "the policy's logits are NaN or infinite, although its weights are not: load other weights, "
            "or serve them with another --dtype"
        )
    sampled = []
    for sequence, token, logprob in zip(sequences, map(int, read[0]), read[1], strict=True):
        sequence.last_token = token
        sampled.append(Sampled(sequence, token, logprob))
    return tokens, sampled
