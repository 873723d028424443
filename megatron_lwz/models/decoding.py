"""Continuous batching on the policy's own Megatron model: prompts are computed once, then all sequences step together.

The model's own modules do the computation (embedding, norms, linear layers, output layer), so engine and trainer share
weights and kernels. Written here are attention over cached keys and values, and products with few tokens.
One rank (no tensor or pipeline parallelism). Shape legend: T tokens of a pass, H hidden, G key-value heads, Q query
heads per key-value head, D head dimension, V true vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from megatron_lwz.kernels import decode_attention, thin_product
from megatron_lwz.models.decoding_cache import CachedSequence, CacheShape, Prefix, PrefixCache, RowCache
from megatron_lwz.models.decoding_sampling import Sampler
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.suffix_attention import attend_piece

Attend = Callable[[int, Tensor], Tensor]
"""(layer, queries, key and value of each token before RoPE [T, G, Q + 2, D]) → [T, G, Q, D]"""
_OWN_LINEAR = (ColumnParallelLinear, RowParallelLinear)
"""Modules that, on one rank, are one product and a sum: these two are computed here, to the same bits. The modules' own way
to them takes longer than the product of a step (autograd, autocast). Transformer Engine's modules may hold a norm, too."""


@dataclass(frozen=True)
class Sampled:
    """One new token of a sequence with its log-prob (see `Sampler.draw`)."""

    sequence: CachedSequence
    token: int
    logprob: float


class Decoder:
    """Decodes up to `slots` sequences at once; other sequences wait. Not thread-safe.

    `max_length` bounds prompt + response in tokens; the caller removes a sequence before it would exceed it.
    `prefill_tokens` is the number of prompt tokens computed per step; it limits how long a long prompt delays the other
    sequences.
    """

    def __init__(self, model: PolicyModel, *, max_length: int, slots: int, prefill_tokens: int = 2048) -> None:
        self.slots = slots
        self._capacity = slots * max_length
        self._forward = DecodingForward(model, max_length)
        self._prefill_tokens = prefill_tokens
        self._rows = RowCache(self._forward.cache_shape)
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
        self._rows, self._batch = RowCache(self._forward.cache_shape), None

    @torch.inference_mode()
    def step(self) -> list[Sampled]:
        """Returns one token for every running sequence, and the first token of those that start."""
        return self._decode() + self._start()

    def _decode(self) -> list[Sampled]:
        if not self._writing:
            return []
        if self._rows.move_grown() or self._batch is None:
            self._batch = _Batch(self._rows, self._forward)
        return self._batch.step()

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
            self._rows.add(sequence, self._pending.pop(sequence).cached)
        self._batch = None
        return _draw(_sampler(ready, logits.device), ready, logits)[1]


class _Batch:
    """The sequences of a decode step in row order, with all tensors that stay the same from step to step."""

    def __init__(self, rows: RowCache, forward: DecodingForward) -> None:
        self._forward = forward
        self._buckets = rows.buckets()
        self._sequences = [sequence for bucket in self._buckets for sequence in bucket.sequences]
        self._device = forward.cache_shape.device
        self._tokens = torch.tensor([s.last_token for s in self._sequences], device=self._device)
        self._positions = torch.tensor([s.length for s in self._sequences], device=self._device)
        self._sampler = _sampler(self._sequences, self._device)
        self._longest = [max(s.length for s in bucket.sequences) for bucket in self._buckets]
        self._rows = [torch.arange(len(bucket.sequences), device=self._device) for bucket in self._buckets]
        self._kernel = decode_attention.serves(forward.queries, self._buckets[0].store[0])

    def step(self) -> list[Sampled]:
        sizes = [len(rows) for rows in self._rows]
        positions = self._positions.split(sizes)
        lengths = (self._positions + 1).split(sizes)
        self._longest = [longest + 1 for longest in self._longest]
        masks = list(map(self._mask, positions, self._longest))
        forward, scale = self._forward, self._forward.scale
        turn = None if self._kernel else forward.rotation(self._positions)

        def attend(layer: int, mixed: Tensor) -> Tensor:
            outputs, start = [], 0
            if turn is not None:
                turn(mixed)
            for bucket, rows, size, position, length, longest, mask in zip(
                self._buckets, self._rows, sizes, positions, lengths, self._longest, masks, strict=True
            ):
                store, part = bucket.store[layer], slice(start, start + size)
                if mask is None:
                    outputs.append(decode_attention.attend(mixed[part], forward.cos, forward.sin, store, length, scale))
                else:
                    store[rows, :, :, position] = mixed[part, :, -2:]
                    seen = store[:size, :, :, :longest]
                    query = mixed[part, :, :-2]
                    outputs.append(
                        F.scaled_dot_product_attention(query, seen[:, :, 0], seen[:, :, 1], mask, scale=scale)
                    )
                start += size
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        logits = forward(self._tokens, attend)
        for sequence in self._sequences:
            sequence.length += 1
        self._positions += 1
        tokens, sampled = _draw(self._sampler, self._sequences, logits)
        self._tokens = tokens
        return sampled

    def _mask(self, positions: Tensor, longest: int) -> Tensor | None:
        """Returns what torch's attention adds to the scores of a bucket [R, 1, 1, N]; None where our kernel attends."""
        if self._kernel:
            return None
        hidden = torch.arange(longest, device=self._device) > positions[:, None]
        nothing = torch.zeros(hidden.shape, device=self._device, dtype=self._forward.cache_shape.dtype)
        return nothing.masked_fill_(hidden, -torch.inf)[:, None, None]


class DecodingForward:
    """Forward passes of the policy's modules over tokens of many sequences; the caller supplies attention."""

    def __init__(self, model: PolicyModel, max_length: int) -> None:
        assert model.lora is None, "the products below read weights alone: serve a merged export"
        settings = model.config
        self._model: Any = model.eval()  # Any: torch types a module's attributes as tensors
        self._groups = settings.num_query_groups
        self._head_dim = settings.kv_channels
        self._normed = settings.qk_layernorm
        self.queries = settings.num_attention_heads // settings.num_query_groups
        """Query heads per key-value head."""
        self.scale: float | None = settings.softmax_scale
        """Factor on the products of queries and keys; None: 1 / √D."""
        self._vocab = model.true_vocab_size
        weight = model.embedding.word_embeddings.weight
        self.cache_shape = CacheShape(
            settings.num_layers, self._groups, self._head_dim, settings.params_dtype, weight.device
        )
        angles = model.rotary_pos_emb.get_emb(max_length)[:, 0].to(weight.device)  # [max_length, 1, D]
        self.cos, self.sin = angles[:, 0].cos(), angles[:, 0].sin()
        """RoPE by position [max_length, D], fp32 also for bf16 weights, as the trainer rotates them. The first half of the
        sine has the minus sign of "rotate half"."""
        self.sin[:, : self._head_dim // 2].neg_()

    def __call__(self, tokens: Tensor, attend: Attend, last: Tensor | None = None) -> Tensor:
        """Returns logits [T, V] fp32 after each token [T], or only after those at the indices `last`."""
        model = self._model
        hidden = F.embedding(tokens, model.embedding.word_embeddings.weight)[:, None]
        for index, layer in enumerate(model.decoder.layers):
            hidden = hidden + self._attention(index, layer.self_attention, layer.input_layernorm(hidden), attend)
            hidden = hidden + _mlp(layer.mlp, layer.pre_mlp_layernorm(hidden))
        hidden = model.decoder.final_layernorm(hidden if last is None else hidden[last])
        return _project(model.output_layer, hidden, model.output_weight())[:, 0, : self._vocab].float()

    def rotation(self, positions: Tensor) -> Callable[[Tensor], None]:
        """Returns a function that turns queries and keys [T, G, Q + 2, D] by `positions` [T] in place, not the values."""
        cos, sin = self.cos[positions][:, None, None], self.sin[positions][:, None, None]
        half = self._head_dim // 2

        def turn(mixed: Tensor) -> None:
            turned = mixed[:, :, :-1]
            mixed[:, :, :-1] = turned * cos + torch.cat((turned[..., half:], turned[..., :half]), -1) * sin

        return turn

    def _attention(self, index: int, module: Any, hidden: Tensor, attend: Attend) -> Tensor:
        """[T, 1, H] → [T, 1, H]. Megatron's fused projection holds, per key-value head, its queries, key and value."""
        mixed = _project(module.linear_qkv, hidden).view(hidden.shape[0], self._groups, -1, self._head_dim)
        if self._normed:
            mixed[:, :, :-2] = module.q_layernorm(mixed[:, :, :-2])
            mixed[:, :, -2:-1] = module.k_layernorm(mixed[:, :, -2:-1])
        return _project(module.linear_proj, attend(index, mixed).reshape(hidden.shape[0], 1, -1))

    def prefill(self, prefixes: Iterable[Prefix], budget: int) -> None:
        """Computes the next `budget` prompt tokens of unfinished prefixes, in order, in one pass."""
        segments: list[tuple[Prefix, int, int]] = []
        for prefix in prefixes:
            stop = min(len(prefix.tokens), prefix.done + budget)
            if stop > prefix.done:
                segments.append((prefix, prefix.done, stop))
                budget -= stop - prefix.done
        if not segments:
            return
        device = self.cache_shape.device
        tokens = torch.tensor([t for prefix, start, stop in segments for t in prefix.tokens[start:stop]], device=device)
        positions = torch.cat([torch.arange(start, stop, device=device) for _, start, stop in segments])
        last = torch.tensor([stop - start for _, start, stop in segments], device=device).cumsum(0) - 1

        turn = self.rotation(positions)

        def attend(layer: int, mixed: Tensor) -> Tensor:
            turn(mixed)
            outputs, begin = [], 0
            for prefix, start, stop in segments:
                part = slice(begin, begin + stop - start)
                prefix.cached[layer, :, :, start:stop] = mixed[part, :, -2:].permute(1, 2, 0, 3)
                outputs.append(attend_piece(mixed[part, :, :-2], prefix.cached[layer, :, :, :stop], self.scale))
                begin = part.stop
            return torch.cat(outputs)

        logits = self(tokens, attend, last)
        for row, (prefix, _, stop) in enumerate(segments):
            prefix.done = stop
            if stop == len(prefix.tokens):
                prefix.logits = logits[row]


def _project(module: Any, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
    """Applies a linear module, with another `weight` if it holds none (tied), to [T, 1, K] → [T, 1, N]."""
    used = module.weight if weight is None else weight
    if thin_product.serves(len(hidden), used):
        return thin_product.multiply(hidden, used, module.bias)
    if isinstance(module, _OWN_LINEAR):
        product = torch.matmul(hidden, used.t())
        return product if module.bias is None else product + module.bias
    return module(hidden)[0] if weight is None else module(hidden, weight=weight)[0]


def _mlp(module: Any, hidden: Tensor) -> Tensor:
    """[T, 1, H] → [T, 1, H]."""
    if isinstance(module.linear_fc1, _OWN_LINEAR):
        return _project(module.linear_fc2, module.activation_func(_project(module.linear_fc1, hidden)))
    return module(hidden)[0]


def _sampler(sequences: list[CachedSequence], device: torch.device) -> Sampler:
    return Sampler(
        [s.temperature for s in sequences], [s.top_p for s in sequences], [s.seed for s in sequences], device=device
    )


def _draw(sampler: Sampler, sequences: list[CachedSequence], logits: Tensor) -> tuple[Tensor, list[Sampled]]:
    """Draws the token at position `length` of every sequence."""
    tokens, logprobs = sampler.draw(logits, np.array([s.length for s in sequences], dtype=np.uint64))
    sampled = []
    for sequence, token, logprob in zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True):
        sequence.last_token = token
        sampled.append(Sampled(sequence, token, logprob))
    return tokens, sampled
