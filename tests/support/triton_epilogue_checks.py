"""What the Triton epilogue must satisfy wherever it runs: through the interpreter, and on a GPU (tests/gpu)."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients, combine, empty_statistics
from megatron_lwz.kernels.linear_logprob.triton import BLOCK, TritonEpilogue

WIDTHS = {
    "one": 1,
    "below_vector": 15,
    "vector": 16,
    "masked_block_only": 700,
    "whole_blocks": 2 * BLOCK,
    "blocks_and_vector_tail": BLOCK + 528,
    "blocks_and_odd_tail": 2 * BLOCK + 1003,
    "blocks_and_one": BLOCK + 1,
}
ROWS = 5


def logits(
    rows: int, columns: int, *, dtype: torch.dtype, device: str, shift: float = 0.0, stride: int | None = None
) -> torch.Tensor:
    """A tile [rows, columns] that is a column slice of a wider buffer, with rows `stride` elements apart."""
    generator = torch.Generator().manual_seed(columns)
    stride = stride or (columns + 47) // 16 * 16
    buffer = torch.randn(rows, stride, generator=generator) * 4 + shift
    offset = min(16, stride - columns)
    return buffer.to(device, dtype)[:, offset : offset + columns]


def some_labels(rows: int, columns: int, device: str) -> torch.Tensor:
    """The first and the last column, one inside, one below and one above the tile."""
    return torch.tensor([0, columns - 1, columns // 2, -3, columns]).repeat(rows // 5 + 1)[:rows].to(device)


def upstream(rows: int, *, entropy: bool, lse: bool, device: str) -> list[torch.Tensor | None]:
    """Gradients of logprob, entropy and lse; those of row 1 are all 0."""
    found = torch.randn(3, rows, generator=torch.Generator().manual_seed(1)).to(device)
    found[:, 1] = 0.0
    return [found[0], found[1] if entropy else None, found[2] if lse else None]


def exact_statistics(y: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[4, n] fp64 of scaled logits y."""
    m = y.amax(1)
    e = (y - m[:, None]).exp()
    own = (labels >= 0) & (labels < y.shape[1])
    chosen = y.gather(1, labels.clamp(0, y.shape[1] - 1)[:, None])[:, 0] * own
    return torch.stack([m, e.sum(1), (e * (y - m[:, None])).sum(1), chosen])


def exact_gradient(z: torch.Tensor, labels: torch.Tensor, scale: float, gradients: list) -> torch.Tensor:
    """dL/dz by autograd in fp64; a label outside the tile adds nothing."""
    z = z.double().requires_grad_()
    y = z * scale
    lse = y.logsumexp(1)
    p = (y - lse[:, None]).exp()
    own = (labels >= 0) & (labels < z.shape[1])
    logprob = y.gather(1, labels.clamp(0, z.shape[1] - 1)[:, None])[:, 0] * own - lse
    outputs = (logprob, lse - (p * y).sum(1), lse)
    loss = sum((g.double() * o).sum() for g, o in zip(gradients, outputs, strict=True) if g is not None)
    return torch.autograd.grad(loss, z)[0]


def row_gradients(z: torch.Tensor, scale: float, gradients: list) -> RowGradients:
    y = z.double() * scale
    lse = y.logsumexp(1)
    mean = ((y - lse[:, None]).exp() * y).sum(1)
    return RowGradients(lse.float(), mean.float(), *gradients)


class TritonEpilogueChecks:
    """A subclass names the device and how coarse a bf16 result may be."""

    device = "cpu"
    bf16_tolerance = 3e-3

    def measured(self, z: torch.Tensor, labels: torch.Tensor, scale: float, *, tiles: int = 1) -> torch.Tensor:
        running = empty_statistics(z.shape[0], dtype=torch.float32, device=z.device)
        begin = 0
        for tile in z.tensor_split(tiles, 1):
            TritonEpilogue().statistics(tile, labels - begin, scale, running)
            begin += tile.shape[1]
        return running

    def assert_log_probs_are_exact(
        self, found: torch.Tensor, z: torch.Tensor, labels: torch.Tensor, scale: float, tolerance: float = 1e-5
    ) -> None:
        expected = exact_statistics(z.double() * scale, labels)
        for ours, exact in zip(combine(found[None].double()), combine(expected[None]), strict=True):
            assert (ours - exact).abs().max() <= tolerance
        torch.testing.assert_close(found[0].double(), expected[0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found[1].double(), expected[1], atol=0, rtol=2e-5)

    @pytest.mark.parametrize("columns", WIDTHS.values(), ids=WIDTHS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    @pytest.mark.parametrize("stride", [None, "odd"], ids=["aligned", "unaligned"])
    def test_statistics_equal_fp64(self, columns, dtype, stride):
        z = logits(ROWS, columns, dtype=dtype, device=self.device, stride=None if stride is None else columns | 33)
        labels = some_labels(ROWS, columns, self.device)
        before = z.clone()
        self.assert_log_probs_are_exact(self.measured(z, labels, 1 / 0.7), z, labels, 1 / 0.7)
        assert torch.equal(z, before)

    @pytest.mark.parametrize("tiles", [2, 3, 7])
    @pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
    def test_tiles_of_a_row_merge_into_its_statistics(self, tiles, scale):
        z = logits(ROWS, 3 * BLOCK + 1001, dtype=torch.float32, device=self.device)
        labels = torch.tensor([0, BLOCK - 1, BLOCK, 3 * BLOCK + 1000, -1], device=self.device)
        self.assert_log_probs_are_exact(self.measured(z, labels, scale, tiles=tiles), z, labels, scale)

    def test_logits_far_below_zero(self):
        z = logits(ROWS, BLOCK + 3, dtype=torch.float32, device=self.device, shift=-400.0)
        labels = some_labels(ROWS, BLOCK + 3, self.device)
        self.assert_log_probs_are_exact(self.measured(z, labels, 1.0), z, labels, 1.0, 1e-4)  # fp32 spacing: 3e-5

    def test_maximum_that_rises_and_falls_between_tiles(self):
        z = logits(ROWS, 3 * 64, dtype=torch.float32, device=self.device)
        z[:, 64:128] += 200.0
        labels = some_labels(ROWS, 192, self.device)
        self.assert_log_probs_are_exact(self.measured(z, labels, 1.0, tiles=3), z, labels, 1.0, 3e-5)

    @pytest.mark.parametrize("columns", WIDTHS.values(), ids=WIDTHS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["from_fp32", "from_bf16"])
    @pytest.mark.parametrize("out", [torch.float32, torch.bfloat16], ids=["to_fp32", "to_bf16"])
    def test_gradient_equals_fp64(self, columns, dtype, out):
        z = logits(ROWS, columns, dtype=dtype, device=self.device)
        self.check_gradient(z, out, upstream(ROWS, entropy=True, lse=True, device=self.device))

    @pytest.mark.parametrize("columns", [1, 700, BLOCK + 529])
    @pytest.mark.parametrize("out", [torch.float32, torch.bfloat16], ids=["to_fp32", "to_bf16"])
    def test_gradient_of_rows_that_are_not_aligned(self, columns, out):
        z = logits(ROWS, columns, dtype=torch.float32, device=self.device, stride=columns | 33)
        self.check_gradient(z, out, upstream(ROWS, entropy=True, lse=False, device=self.device))

    @pytest.mark.parametrize("entropy", [False, True])
    @pytest.mark.parametrize("lse", [False, True])
    def test_gradient_without_entropy_or_lse(self, entropy, lse):
        z = logits(ROWS, BLOCK + 131, dtype=torch.float32, device=self.device)
        self.check_gradient(z, torch.float32, upstream(ROWS, entropy=entropy, lse=lse, device=self.device))

    def check_gradient(self, z: torch.Tensor, out: torch.dtype, gradients: list, scale: float = 1 / 0.7) -> None:
        labels = some_labels(*z.shape, self.device)
        expected = exact_gradient(z, labels, scale, gradients)
        rows = row_gradients(z, scale, gradients)
        storage = z.untyped_storage().data_ptr()
        gap = (z.shape[0] - 1, z.stride(0) - z.shape[1])
        outside = torch.as_strided(z, gap, z.stride(), z.storage_offset() + z.shape[1])
        before = outside.clone()
        found = TritonEpilogue().gradient(z, labels, scale, rows, out)
        assert found.dtype == out and found.shape == expected.shape and found.stride(1) == 1
        assert (found.untyped_storage().data_ptr() == storage) == (out.itemsize <= z.element_size())
        assert torch.equal(outside, before), "the neighbouring tiles were written to"
        tolerance = 1e-5 if out == torch.float32 else self.bf16_tolerance
        error = (found.double() - expected).norm() / expected.norm().clamp(min=1e-30)
        assert error <= tolerance or expected.norm() <= 1e-6, error
        assert (found[1] == 0).all(), "rows whose gradients are all 0 must be exactly 0"

    def test_rows_without_gradient_are_not_read(self):
        z = logits(ROWS, BLOCK + 37, dtype=torch.float32, device=self.device)
        rows = row_gradients(z, 1.0, [torch.zeros(ROWS, device=self.device)] * 3)
        z.fill_(float("nan"))
        rows.lse.fill_(float("nan"))
        found = TritonEpilogue().gradient(z, some_labels(*z.shape, self.device), 1.0, rows, torch.bfloat16)
        assert (found == 0).all()

    @pytest.mark.parametrize("out", [torch.float32, torch.bfloat16], ids=["to_fp32", "to_bf16"])
    def test_run_to_run_bitwise(self, out):
        z = logits(ROWS, 2 * BLOCK + 61, dtype=torch.float32, device=self.device)
        labels = some_labels(*z.shape, self.device)
        first, second = (self.measured(z, labels, 1.3, tiles=2) for _ in range(2))
        assert torch.equal(first, second)
        rows = row_gradients(z, 1.3, upstream(ROWS, entropy=True, lse=True, device=self.device))
        first, second = (TritonEpilogue().gradient(z.clone(), labels, 1.3, rows, out) for _ in range(2))
        assert torch.equal(first, second)

    def test_fp64_is_computed_in_fp64(self):
        z = logits(ROWS, 300, dtype=torch.float64, device=self.device)
        labels = some_labels(*z.shape, self.device)
        running = empty_statistics(ROWS, dtype=torch.float64, device=z.device)
        TritonEpilogue().statistics(z, labels, 1.1, running)
        torch.testing.assert_close(running, exact_statistics(z * 1.1, labels), atol=0, rtol=1e-12)
