"""The exact output of the model in a Hugging Face folder: its forward pass in fp64, one weight matrix at a time.

It is the reference of `lwz convert verify`. transformers' model cannot be the reference: in fp64 too, its RMSNorm
and its rotary embedding compute in fp32. Shape legend: T tokens of all texts, n tokens of one text, H hidden, A attention
heads, G key-value heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_lwz.config import Architecture
from megatron_lwz.models.frequencies import rotary_frequencies
from megatron_lwz.models.hf.folder import HfFolder
from megatron_lwz.models.hf.name_map import EMBEDDING, HEAD, SCORE, tensor_shapes

_HEAD_ROWS = 8192
"""Rows of the output layer in memory at a time."""


class ExactModel:
    """The function of a folder's weights under an architecture, as equations say and without rounding below fp64."""

    def __init__(self, folder: HfFolder, arch: Architecture) -> None:
        self._folder = folder
        self._arch = arch
        self._shapes = tensor_shapes(arch)

    @torch.no_grad()
    def logprobs(self, texts: Sequence[Tensor]) -> list[Tensor]:
        """Returns for each text [n] the log-probs [n − 1] fp64 of its tokens after the first."""
        hidden = self._hidden([text[:-1] for text in texts])
        labels = torch.cat([text[1:] for text in texts]).long()
        name = EMBEDDING if self._arch.tie_word_embeddings else HEAD
        total = torch.full((len(labels),), -torch.inf, dtype=torch.float64)
        chosen = torch.zeros_like(total)
        for start in range(0, self._arch.vocab_size, _HEAD_ROWS):
            stop = min(start + _HEAD_ROWS, self._arch.vocab_size)
            rows = self._folder.read(name, self._shapes[name], 0, (start, stop)).double()
            logits = hidden @ rows.T  # [T, stop − start]
            total = torch.logaddexp(total, logits.logsumexp(-1))
            inside = (labels >= start) & (labels < stop)
            chosen[inside] = logits[inside, labels[inside] - start]
        return list((chosen - total).split([len(text) - 1 for text in texts]))

    @torch.no_grad()
    def scores(self, texts: Sequence[Tensor]) -> Tensor:
        """Returns [texts] fp64: the scalar head's value at the last token of each text."""
        last = torch.tensor([len(text) for text in texts]).cumsum(0) - 1
        return self._hidden(texts)[last] @ self._read(SCORE)[0]

    def _hidden(self, texts: Sequence[Tensor]) -> Tensor:
        """Returns [T, H] after the final norm. Texts do not attend to each other."""
        sizes = [len(text) for text in texts]
        tokens = torch.cat(list(texts)).tolist()
        rows = {
            token: self._folder.read(EMBEDDING, self._shapes[EMBEDDING], 0, (token, token + 1)) for token in {*tokens}
        }
        hidden = torch.cat([rows[token] for token in tokens]).double()
        turn = self._turns(torch.cat([torch.arange(size) for size in sizes]))
        for layer in range(self._arch.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            hidden = hidden + self._attention(self._norm(hidden, f"{prefix}input_layernorm"), prefix, turn, sizes)
            hidden = hidden + self._feed_forward(self._norm(hidden, f"{prefix}post_attention_layernorm"), prefix)
        return self._norm(hidden, "model.norm")

    def _attention(self, hidden: Tensor, prefix: str, turn: tuple[Tensor, Tensor], sizes: list[int]) -> Tensor:
        """Grouped-query causal attention of each text, [T, H] → [T, H]."""
        size = self._arch.head_size
        query, key, value = (
            self._linear(hidden, f"{prefix}self_attn.{name}_proj").unflatten(-1, (-1, size)) for name in "qkv"
        )
        if self._arch.family.qk_norm:
            query, key = (
                self._norm(part, f"{prefix}self_attn.{name}_norm") for part, name in ((query, "q"), (key, "k"))
            )
        query, key = _rotate(query, *turn), _rotate(key, *turn)
        scale = self._arch.attention_scale or size**-0.5
        mixed = [
            _attend(*parts, scale=scale)
            for parts in zip(*(part.split(sizes) for part in (query, key, value)), strict=True)
        ]
        return self._linear(torch.cat(mixed).flatten(1), f"{prefix}self_attn.o_proj")

    def _feed_forward(self, hidden: Tensor, prefix: str) -> Tensor:
        """SwiGLU, [T, H] → [T, H]."""
        gate = torch.nn.functional.silu(self._linear(hidden, f"{prefix}mlp.gate_proj"))
        return self._linear(gate * self._linear(hidden, f"{prefix}mlp.up_proj"), f"{prefix}mlp.down_proj")

    def _turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosine and sine [T, 1, D / 2] of the rotary angles."""
        angles = (positions.double()[:, None] * rotary_frequencies(self._arch, torch.float64))[:, None]
        return angles.cos(), angles.sin()

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        """RMSNorm over the last dimension."""
        scale = (hidden.square().mean(-1, keepdim=True) + self._arch.rms_norm_eps).rsqrt()
        return hidden * scale * self._read(f"{name}.weight")

    def _linear(self, hidden: Tensor, name: str) -> Tensor:
        out = hidden @ self._read(f"{name}.weight").T
        return out + self._read(f"{name}.bias") if f"{name}.bias" in self._shapes else out

    def _read(self, name: str) -> Tensor:
        return self._folder.read(name, self._shapes[name]).double()


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns [T, heads, D]: dimension i with dimension i + D / 2."""
    first, second = heads.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """Causal attention within one text: query [n, A, D], key and value [n, G, D] → [n, A, D]."""
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (key, value))
    weights = torch.einsum("qad,kad->aqk", query, key) * scale
    future = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)
    return torch.einsum("aqk,kad->qad", weights.masked_fill(future, -torch.inf).softmax(-1), value)
