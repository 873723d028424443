"""The policy's forward pass for decoding: its own modules, products with few tokens, and attention that the caller supplies.

Under tensor parallelism every rank has its heads, its part of the feed-forward width and of the vocabulary, and gets all
logits; no pipeline. Shape legend: T tokens of a pass, H hidden, G key-value heads of this rank, Q query heads per key-value
head, D head dimension, V true vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_tensor_model_parallel_region,
)
from torch import Tensor

from megatron_lwz.distributed import groups
from megatron_lwz.kernels import thin_product
from megatron_lwz.kernels.layers import cpp as layers
from megatron_lwz.models.decoding_cache import Attend, CacheShape, Prefix
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.suffix_attention import attend_piece

_OWN_LINEAR = (ColumnParallelLinear, RowParallelLinear)
"""Modules that, on one rank, are one product and a sum: these two are computed here, to the same bits. The modules' own way
to them takes longer than the product of a step (autograd, autocast). Transformer Engine's modules may hold a norm, too."""


class Rotation:
    """RoPE by position: cosine and sine of `angles` [P, D], fp32 also for bf16 weights, as the trainer rotates them."""

    def __init__(self, angles: Tensor) -> None:
        self.cos, self.sin = angles.cos(), angles.sin()
        """Both [P, D] fp32. The first half of the sine has the minus sign of "rotate half"."""
        self.sin[:, : angles.shape[1] // 2].neg_()

    def at(self, positions: Tensor) -> Callable[[Tensor], None]:
        """Returns a function that turns queries and keys [T, G, Q + 2, D] by `positions` [T] in place, not the values."""
        half = self.cos.shape[1] // 2
        rows = self.cos[positions], self.sin[positions]
        of_pairs = rows[0][:, :half], rows[1][:, half:]
        cos, sin = (row[:, None, None] for row in rows)

        def turn(mixed: Tensor) -> None:
            if layers.rotates(mixed):
                for group in mixed[:, :, :-1].unbind(1):
                    layers.rotate_in_place(group, *of_pairs)
                return
            turned = mixed[:, :, :-1]
            mixed[:, :, :-1] = turned * cos + torch.cat((turned[..., half:], turned[..., :half]), -1) * sin

        return turn


class DecodingForward:
    """Forward passes of the policy's modules over tokens of many sequences; the caller supplies attention."""

    def __init__(self, model: PolicyModel, max_length: int) -> None:
        assert model.lora is None, "the products below read weights alone: serve a merged export"
        settings = model.config
        self._model: Any = model.eval()  # Any: torch types a module's attributes as tensors
        self._groups = settings.num_query_groups // groups.tensor_size()
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
        self.rotation = Rotation(angles[:, 0])

    def __call__(self, tokens: Tensor, attend: Attend, last: Tensor | None = None) -> Tensor:
        """Returns logits [T, V] fp32 after each token [T], or only after those at the indices `last`."""
        model = self._model
        hidden = self._embed(tokens)[:, None]
        for index, layer in enumerate(model.decoder.layers):
            hidden = hidden + self._attention(index, layer.self_attention, layer.input_layernorm(hidden), attend)
            hidden = hidden + _mlp(layer.mlp, layer.pre_mlp_layernorm(hidden))
        hidden = model.decoder.final_layernorm(hidden if last is None else hidden[last])
        logits = _project(model.output_layer, hidden, model.output_weight())
        if groups.tensor_size() > 1:
            logits = gather_from_tensor_model_parallel_region(logits)
        return logits[:, 0, : self._vocab].float()

    def _embed(self, tokens: Tensor) -> Tensor:
        """[T] → [T, H]."""
        words = self._model.embedding.word_embeddings
        return F.embedding(tokens, words.weight) if groups.tensor_size() == 1 else words(tokens)

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

        turn = self.rotation.at(positions)

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
    if groups.tensor_size() > 1 and isinstance(module, RowParallelLinear):
        product = thin_product.linear(hidden, module.weight)
        dist.all_reduce(product, group=groups.tensor_group())
        return product if module.bias is None else product + module.bias
    used = module.weight if weight is None else weight
    if thin_product.serves(hidden.shape[0], used):
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
