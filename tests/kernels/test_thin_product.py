"""Products of few rows against fp64, on all instruction sets, and where torch's library takes over."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_lwz.kernels import thin_product

native = thin_product._cpu
built = pytest.mark.skipif(native is None, reason="the C++ kernels are not built")
BF16 = 2**-8
"""Largest relative error of a number rounded to bf16."""


def operands(rows, inputs, outputs, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows + inputs + outputs)
    x = torch.randn(rows, inputs, generator=generator)
    return x, torch.randn(outputs, inputs, generator=generator).to(dtype)


def error(found, x, weight):
    """Largest error, in units of Σ |x·w|: what rounding is relative to."""
    x, weight = x.double(), weight.double()
    return ((found.double() - x @ weight.t()).abs() / (x.abs() @ weight.abs().t())).max().item()


@built
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 17, 48])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (5, 3), (1037, 131), (3000, 6)])
def test_it_equals_fp64(rows, inputs, outputs, dtype):
    x, weight = operands(rows, inputs, outputs, dtype)
    result = torch.full((rows, outputs), 7.0)
    native.thin_product(x, weight, result, 2)
    assert error(result, x, weight) <= 1e-6


@built
@pytest.mark.usefixtures("_instructions")
def test_rows_of_the_weight_may_lie_apart_and_the_bias_is_added():
    x, wide = operands(6, 100, 70)
    weight, bias = wide[:, 3:83], torch.randn(70)
    found = thin_product.linear(x[None, :, 3:83], weight, bias)
    assert found.shape == (1, 6, 70)
    torch.testing.assert_close(found, F.linear(x[None, :, 3:83], weight, bias), rtol=1e-5, atol=1e-4)


@built
@pytest.mark.parametrize(("inputs", "outputs"), [(63, 8), (65, 8), (64, 7)])
def test_shapes_that_do_not_fit_together_are_refused(inputs, outputs):
    x, weight = operands(3, 64, 8)
    with pytest.raises(ValueError, match="shapes do not fit"):
        native.thin_product(x.new_zeros(3, inputs), weight, torch.empty(3, outputs), 1)


@built
def test_a_row_gets_the_same_bits_in_any_company_and_on_any_number_of_threads():
    x, weight = operands(48, 1100, 333)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = thin_product.linear(x, weight)
        torch.set_num_threads(3)
        parts = [thin_product.linear(part, weight) for part in x.split([1, 2, 3, 4, 38])]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole, torch.cat(parts))


@built
def test_bf16_rows_get_bf16_results_of_fp32_sums():
    x, weight = operands(4, 2000, 65, torch.bfloat16)
    x = x.bfloat16()
    found = thin_product.multiply(x, weight)
    assert found.dtype == torch.bfloat16
    exact = x.double() @ weight.double().t()
    assert ((found.double() - exact).abs() <= BF16 * exact.abs() + 1e-4).all()


@built
def test_what_is_not_finite_is_not_hidden():
    x, weight = operands(3, 40, 9)
    x[1, 5], weight[4, 7] = torch.nan, torch.inf
    found = thin_product.linear(x, weight)
    assert found[1].isnan().all()
    assert not found[0, 4].isfinite()
    assert found[0, [0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


@built
def test_bf16_goes_to_torch_where_the_cpu_multiplies_it(monkeypatch):
    _, weight = operands(2, 16, 8, torch.bfloat16)
    for fast in (True, False):
        monkeypatch.setattr(thin_product, "has_fast_bf16", lambda fast=fast: fast)
        assert thin_product.serves(2, weight) != fast


@pytest.mark.parametrize(
    ("rows", "dtype"), [(thin_product.MOST_ROWS + 1, torch.float32), (2, torch.float64), (0, torch.float32)], ids=str
)
def test_other_products_are_those_of_torch(rows, dtype):
    x, weight = operands(rows, 16, 8, dtype)
    assert not thin_product.serves(rows, weight)
    assert torch.equal(thin_product.linear(x.to(dtype), weight), F.linear(x.to(dtype), weight))


def test_without_the_module_torch_does_the_work(monkeypatch):
    monkeypatch.setattr(thin_product, "_cpu", None)
    x, weight = operands(2, 16, 8)
    assert torch.equal(thin_product.linear(x, weight), F.linear(x, weight))
