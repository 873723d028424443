"""Attention of a decode step against fp64, on all instruction sets, and where torch's attention takes over."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_lwz.kernels import decode_attention, thin_product
from megatron_lwz.kernels.decode_attention import PAGE, as_page, of_page
from megatron_lwz.kernels.layers import PLAIN

native = thin_product._cpu
built = pytest.mark.skipif(native is None, reason="the C++ kernels are not built")
BF16 = 2**-8
"""Largest relative error of a number rounded to bf16."""


def operands(lengths, heads, queries, width, dtype=torch.float32, scale=1.0):
    """Query, a cache with two rows more than are used, and the lengths."""
    generator = torch.Generator().manual_seed(len(lengths) + heads + queries + width)
    store = torch.randn(len(lengths) + 2, heads, 2, max(lengths) + 5, width, generator=generator)
    query = scale * torch.randn(len(lengths), heads, queries, width, generator=generator)
    return query.to(dtype), store.to(dtype), torch.tensor(lengths)


def in_pages(store):
    """Addresses [rows, pages] and the pages of one layer of the rows of a store [rows, heads, 2, tokens, width]."""
    rows = []
    for row in store:
        pages = [torch.full((1, *row.shape[:2], PAGE, row.shape[3]), torch.nan).to(row) for _ in row.split(PAGE, 2)]
        for page, part in zip(pages, row.split(PAGE, 2), strict=True):
            page[0, :, :, : part.shape[2]] = part
        pages = list(map(as_page, pages))
        rows.append(pages)
    return torch.tensor([[page.data_ptr() for page in pages] for pages in rows]), rows


def attend(query, store, lengths):
    """The kernel without rotation; the newest key and value are those in the store already."""
    places = (lengths - 1).clamp(0, store.shape[3] - 1).tolist()
    newest = torch.stack([store[row, :, :, place] for row, place in enumerate(places)])
    angles = torch.ones(store.shape[3], store.shape[4]), torch.zeros(store.shape[3], store.shape[4])
    addresses, _kept = in_pages(store[: len(query)])
    return decode_attention.attend(torch.cat((query, newest), 2).contiguous(), *angles, addresses, 0, lengths)


def expected(query, store, lengths):
    """In fp64, row by row."""
    query, store = query.double(), store.double()
    rows = [(store[row, :, 0, :n], store[row, :, 1, :n]) for row, n in enumerate(lengths.tolist())]
    return torch.stack([F.scaled_dot_product_attention(q, k, v) for q, (k, v) in zip(query, rows, strict=True)])


@built
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries", [1, 2, 3, 4, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("width", [8, 32, 40, 48, 64, 128])
def test_it_equals_fp64(queries, width, dtype):
    query, store, lengths = operands([1, 2, 7, 127, 128, 129, 300], 2, queries, width, dtype)
    found = attend(query, store, lengths)
    assert found.dtype == dtype and found.shape == query.shape
    error = (found.double() - expected(query, store, lengths)).abs().max().item()
    assert error <= (2e-6 if dtype == torch.float32 else 4 * BF16)


@built
@pytest.mark.usefixtures("_instructions")
def test_large_scores_stay_exact_and_the_maximum_may_come_in_any_block():
    query, store, lengths = operands([400] * 3, 1, 3, 64, scale=30.0)
    store[0, 0, 0, 399] *= 5
    store[1, 0, 0, 0] *= 5
    found = attend(query, store, lengths)
    torch.testing.assert_close(found.double(), expected(query, store, lengths), rtol=1e-4, atol=1e-4)


@built
def test_a_number_that_is_not_finite_stays_in_its_row():
    query, store, lengths = operands([200] * 3, 2, 4, 32)
    store[1, 0, 0, 150] = torch.nan
    found = attend(query, store, lengths)
    assert found[1, 0].isnan().all() and found[1, 1].isfinite().all() and found[[0, 2]].isfinite().all()


@built
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [8, 64])
def test_it_turns_queries_and_key_by_their_position_and_stores_key_and_value(width, dtype):
    query, store, lengths = operands([1, 2, 7, 300], 2, 3, width, dtype)
    newest = torch.randn(4, 2, 2, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    mixed = torch.cat((query, newest), 2).contiguous()
    angles = torch.outer(torch.arange(310.0), 1e4 ** -(torch.arange(width // 2) / (width // 2)))
    cos, sin = angles.cos(), angles.sin()
    addresses, kept = in_pages(store[:4])
    both = torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)
    found = decode_attention.attend(mixed, *both, addresses, 0, lengths)
    at = lengths - 1
    turned_query, turned_key = PLAIN.rotate(query.flatten(1, 2), newest[:, :, 0], cos[at], sin[at])
    for row, place in enumerate(at.tolist()):
        cached = torch.cat(list(map(of_page, kept[row])), 3)[0, :, :, : store.shape[3]]
        torch.testing.assert_close(cached[:, 0, place], turned_key[row])
        store[row, :, 0, place], store[row, :, 1, place] = cached[:, 0, place], newest[row, :, 1]
        assert torch.equal(cached, store[row])
    error = (found.double() - expected(turned_query.view(query.shape), store, lengths)).abs().max().item()
    assert error <= (2e-6 if dtype == torch.float32 else 4 * BF16)


@built
def test_what_lies_behind_the_length_is_not_read():
    query, store, lengths = operands([9, 130], 2, 7, 64)
    before = attend(query, store, lengths)
    for row, length in enumerate(lengths):
        store[row, :, :, length:] = torch.nan
    store[2:] = torch.nan
    assert torch.equal(attend(query, store, lengths), before)


@built
def test_a_row_gets_the_same_bits_in_any_company_and_on_any_number_of_threads():
    query, store, lengths = operands([1 + 37 * n for n in range(24)], 2, 7, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = attend(query, store, lengths)
        torch.set_num_threads(3)
        parts = [attend(query[rows], store[rows], lengths[rows]) for rows in (slice(0, 1), slice(1, 9), slice(9, 24))]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole, torch.cat(parts))


@built
def test_pages_hold_all_layers_and_a_missing_one_is_refused():
    query, store, lengths = operands([130, 40], 2, 5, 64)
    addresses, kept = in_pages(store[:2])
    other = [[torch.cat((torch.zeros_like(page), page)) for page in pages] for pages in kept]
    table = torch.tensor([[page.data_ptr() for page in pages] for pages in other])
    newest = torch.stack([store[0, :, :, 129], store[1, :, :, 39]])
    rest = torch.cat((query, newest), 2).contiguous(), torch.ones(140, 64), torch.zeros(140, 64)
    found = decode_attention.attend(*rest, table, 1, lengths)
    assert torch.equal(found, decode_attention.attend(*rest, addresses, 0, lengths))
    table[0, 1] = 0
    with pytest.raises(ValueError, match="a length is outside the cache"):
        decode_attention.attend(*rest, table, 1, lengths)


@built
@pytest.mark.parametrize("lengths", [[0, 3], [4, 129]])
def test_a_length_outside_the_cache_is_refused(lengths):
    query, store, _ = operands([3, 3], 1, 2, 16)
    with pytest.raises(ValueError, match="a length is outside the cache"):
        attend(query, store, torch.tensor(lengths))


@pytest.mark.parametrize(
    ("queries", "width", "dtype"), [(17, 64, torch.float32), (4, 36, torch.float32), (4, 64, torch.float64)], ids=str
)
def test_other_shapes_and_types_are_torch_s(queries, width, dtype):
    assert not decode_attention.serves(queries, width, dtype, torch.device("cpu"))


def test_without_the_library_torch_attends(monkeypatch):
    monkeypatch.setattr(decode_attention, "_cpu", None)
    assert not decode_attention.serves(4, 64, torch.float32, torch.device("cpu"))
