"""Core attention against the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_lwz.distributed.context_parallel import gathered_order, shard_indices
from megatron_lwz.models.attention import attend, attend_pieces, plan_pieces

LENGTHS = (12, 4, 0, 8, 24)


def _inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Four query heads over two key-value heads, fp64."""
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(tokens, 4, 6, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, tokens, 2, 6, generator=generator, dtype=torch.float64)
    return q, k, v


def _plain(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d) v over keys of the same document that are not later."""
    k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    place = torch.arange(len(documents))
    seen = (documents[:, None] == documents) & (place[:, None] >= place)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def _pack() -> tuple[Tensor, Tensor]:
    starts = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return starts, torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))


@pytest.mark.parametrize("cp_size", [1, 2])
def test_packed_attention_equals_the_formula_on_every_context_parallel_rank(cp_size: int) -> None:
    starts, documents = _pack()
    q, k, v = _inputs(len(documents))
    expected = _plain(q, k, v, documents)
    order = gathered_order(starts, cp_size)
    for rank in range(cp_size):
        mine = shard_indices(starts, cp_size, rank)
        pieces = plan_pieces(starts, cp_size, rank)
        keys, values = k, v
        if pieces.key_index is not None:
            gathered = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
            keys, values = k[gathered][pieces.key_index], v[gathered][pieces.key_index]
        torch.testing.assert_close(attend_pieces(q[mine], keys, values, pieces), expected[mine])


def test_gradients_equal_the_formula() -> None:
    torch.manual_seed(0)
    starts, documents = _pack()
    inputs = [t.requires_grad_() for t in _inputs(len(documents))]
    weights = torch.randn(len(documents), 4, 6, dtype=torch.float64)
    ours = torch.autograd.grad((attend_pieces(*inputs, plan_pieces(starts)) * weights).sum(), inputs)
    formula = torch.autograd.grad((_plain(*inputs, documents) * weights).sum(), inputs)
    for a, b in zip(ours, formula, strict=True):
        torch.testing.assert_close(a, b)


def _with_gradients(inputs: list[Tensor], weights: Tensor, hidden: Tensor | None) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = attend(leaves[0], leaves[1], leaves[2], hidden=hidden)
    return [output, *torch.autograd.grad(output, leaves, weights)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize(("queries", "keys"), [(2, 3), (40, 100), (64, 129)])
def test_the_last_queries_of_a_sequence_need_no_mask(
    queries: int, keys: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(2)
    inputs = [
        torch.randn(2, heads, size, 16, dtype=torch.float64) for heads, size in ((6, queries), (2, keys), (2, keys))
    ]
    weights = torch.randn(inputs[0].shape, dtype=torch.float64)
    rounded = [x.to(dtype) for x in inputs]
    later = torch.arange(keys) > torch.arange(queries)[:, None] + keys - queries
    found = _with_gradients(rounded, weights.to(dtype), None)
    exact = _with_gradients([x.double() for x in rounded], weights.to(dtype).double(), later)
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == dtype
        assert float((a.double() - b).norm() / b.norm()) < tolerance


def test_short_queries_see_all_earlier_keys() -> None:
    q, k, v = (t.transpose(0, 1)[None] for t in _inputs(10))
    whole = attend(q, k, v)
    for count in (1, 3):
        torch.testing.assert_close(attend(q[:, :, -count:], k, v), whole[:, :, -count:])


def test_an_explicit_mask_hides_keys() -> None:
    q, k, v = (t.transpose(0, 1)[None] for t in _inputs(6))
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    torch.testing.assert_close(attend(q, k, v, hidden=hidden), attend(q, k, v))
