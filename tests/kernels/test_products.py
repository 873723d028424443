"""The op's products against fp64: shapes large enough for oneDNN, where this processor has a use for it, and too small."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.kernels.linear_logprob import products

SIZES = [(300, 128, 2000), (1, 128, 200_000), (37, 24, 501), (640, 600, 704)]


@pytest.fixture(params=["onednn", "onednn for some", "mkl"])
def _library(request, monkeypatch):
    if request.param != "mkl" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch is built without oneDNN")
    monkeypatch.setattr(products, "mkl_leaves_avx512", lambda: request.param != "mkl")
    monkeypatch.setattr(products, "avx512_doubles", lambda: request.param == "onednn")


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_logits_and_both_gradients_match_fp64(size, dtype):
    """The op's three products, in the strides that it uses: tiles are columns of wider rows."""
    rows, hidden, columns = size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, hidden, generator=generator, dtype=dtype)
    w = torch.randn(columns, hidden, generator=generator, dtype=dtype)
    z = torch.zeros(rows, columns + 24, dtype=dtype)[:, 8 : 8 + columns]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13

    def error(found, a, b, before=0.0):
        expected = a.double() @ b.double() + before
        return ((found.double() - expected).norm() / expected.norm()).item()

    products.multiply(x, w.t(), z)
    assert error(z, x, w.t()) <= tolerance

    dx, dw = torch.ones(rows, hidden, dtype=dtype), torch.ones(columns, hidden, dtype=dtype)
    products.accumulate(dx, z, w)
    products.accumulate(dw, z.t(), x)
    assert error(dx, z, w, 1.0) <= tolerance and error(dw, z.t(), x, 1.0) <= tolerance

    products.multiply(z.t(), x, dw)
    assert error(dw, z.t(), x) <= tolerance


@pytest.mark.usefixtures("_library")
def test_run_to_run_bitwise_equal():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(256, 128, generator=generator), torch.randn(4096, 128, generator=generator)
    runs = [products.multiply(x, w.t(), torch.empty(256, 4096)) for _ in range(3)]
    assert all(torch.equal(runs[0], other) for other in runs)
