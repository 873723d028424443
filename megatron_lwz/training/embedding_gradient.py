"""Adds the embedding's gradient to the fp32 buffer row by row, as its tokens say.

Torch's makes a tensor as large as the embedding for every micro-batch, of zeros but for the rows of its tokens, and where the
output layer is tied a second one to add it to: 519 MiB each for 152k tokens of width 896, written and read again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    VocabParallelEmbedding,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from megatron_lwz.models.logprobs import PolicyModel


def add_embedding_gradients_by_row(policies: Iterable[PolicyModel]) -> None:
    """Switches it on in every embedding that is trained. Its weight must have its gradient buffer (`main_grad`)."""
    for policy in policies:
        if not policy.pre_process:
            continue
        words = policy.embedding.word_embeddings
        if not hasattr(words.weight, "main_grad"):  # frozen
            continue
        tied = policy.post_process and policy.share_embeddings_and_output_weights
        if tied:
            words.weight.zero_out_wgrad = False  # what the output layer gives to autograd is not added any more
        words.forward = functools.partial(_embed, words, tied)


def _embed(words: VocabParallelEmbedding, tied: bool, tokens: Tensor) -> Tensor:
    """Does what the module's own `forward` does: [1, T] → [T (/ TP), 1, H] with sequence parallelism, else [1, T, H]."""
    if words.tp_group.size() > 1:
        others = (tokens < words.vocab_start_index) | (tokens >= words.vocab_end_index)
        rows = (tokens - words.vocab_start_index).masked_fill(others, 0)
        found = _Lookup.apply(rows, words.weight, tied).masked_fill(others[..., None], 0.0)
    else:
        found = _Lookup.apply(tokens, words.weight, tied)
    if words.reduce_scatter_embeddings:
        return reduce_scatter_to_sequence_parallel_region(found.transpose(0, 1).contiguous(), group=words.tp_group)
    return reduce_from_tensor_model_parallel_region(found, group=words.tp_group)


class _Lookup(torch.autograd.Function):
    """F.embedding, whose gradient goes to `main_grad`.

    Megatron's contract for gradients added outside autograd: set `grad_added_to_main_grad`, and give autograd a tensor for
    the hooks, whose values do not matter. Where the weight is tied the output layer gives one.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, tied: bool) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.weight, ctx.tied = weight, tied
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, None]:
        (tokens,), (gradient,), total = ctx.saved_tensors, gradients, ctx.weight.main_grad
        rows = gradient.flatten(0, -2).to(total.dtype)
        if total.is_cuda:
            total.index_put_((tokens.flatten(),), rows, accumulate=True)  # in one order, unlike index_add_ there
        else:
            total.index_add_(0, tokens.flatten(), rows)
        ctx.weight.grad_added_to_main_grad = True
        return None, None if ctx.tied else torch.empty_like(ctx.weight), None
