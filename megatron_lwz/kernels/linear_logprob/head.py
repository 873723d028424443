"""This rank's part of the output layer: its products with a chunk of rows, and its gradient.

Products accumulate in fp32. A CPU has no product of bf16 by bf16 with an fp32 result, so each tile of the weight is
converted to fp32 there just before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lwz.kernels.linear_logprob.problem import accumulation_dtype
from megatron_lwz.kernels.linear_logprob.products import accumulate, multiply


@dataclass(frozen=True)
class Tile:
    """Columns of the logits, which are rows of the weight: `start` … `start + len(weight)`."""

    start: int
    weight: Tensor
    """[v, H]: the weight's rows, in the dtype of the product."""

    @property
    def columns(self) -> slice:
        """Columns of the shard's vocabulary."""
        return slice(self.start, self.start + len(self.weight))


class Head:
    """The first `valid` rows of a weight [V / TP, H]."""

    def __init__(self, weight: Tensor, valid: int) -> None:
        self.parameter = weight
        self.valid = valid
        self.accumulation = accumulation_dtype(weight.dtype)
        self.dtype = weight.dtype if weight.is_cuda else self.accumulation
        """Dtype of the factors of products: rows, weight, and the gradient of the logits."""

    def tiles(self, columns: int) -> Iterator[Tile]:
        """Yields the vocabulary from left to right, `columns` at a time; nothing on a shard without vocabulary."""
        for start in range(0, self.valid, columns):
            yield Tile(start, self.parameter.detach()[start : min(start + columns, self.valid)].to(self.dtype))

    def logits(self, x: Tensor, tile: Tile, out: Tensor) -> Tensor:
        """Writes x [n, H] · Wᵀ to `out` [n, v], in fp32 (fp64)."""
        return multiply(x, tile.weight.t(), out)


class WeightGradient:
    """dL/dweight. It is added to Megatron's `main_grad` if the parameter has one, else to a separate buffer.

    Megatron's contract for gradients added outside autograd: set `grad_added_to_main_grad`, and give autograd a tensor
    for the hooks. It must be zeros where the weight is tied to the embedding (`zero_out_wgrad`), whose own gradient is
    added to it; otherwise its values do not matter.
    """

    def __init__(self, head: Head) -> None:
        self._parameter = head.parameter
        self._valid = head.valid
        self.in_main_grad = hasattr(head.parameter, "main_grad") and hasattr(head.parameter, "grad_added_to_main_grad")
        if self.in_main_grad:
            self._total: Tensor = head.parameter.main_grad  # type: ignore[attr-defined]
        else:
            self._total = torch.empty(head.parameter.shape, dtype=head.accumulation, device=head.parameter.device)
            self._total[head.valid :] = 0
        self._written = self.in_main_grad

    def add(self, tile: Tile, gradient: Tensor, x: Tensor) -> None:
        """Adds gradientᵀ [v, n] · x [n, H] to the tile's rows."""
        rows = self._total[tile.columns]
        if self._written:
            accumulate(rows, gradient.t(), x)
        else:
            multiply(gradient.t(), x, rows)

    def end_chunk(self) -> None:
        """Marks that all tiles were added: from now on the buffer holds values to add to."""
        self._written = True

    def scale(self, factor: Tensor) -> None:
        """Multiplies by the upstream gradient of a loss that was differentiated in its forward pass."""
        if self.in_main_grad:
            _require_one(factor)
        else:
            self._total.mul_(factor)

    def result(self) -> Tensor:
        """Returns the tensor to give to autograd."""
        if not self.in_main_grad:
            if not self._written:
                self._total.zero_()
            return self._total.to(self._parameter.dtype)
        self._parameter.grad_added_to_main_grad = True  # type: ignore[attr-defined]
        fresh = torch.zeros_like if getattr(self._parameter, "zero_out_wgrad", False) else torch.empty_like
        return fresh(self._parameter)


def _require_one(factor: Tensor) -> None:
    """Requires factor 1, because `main_grad` already holds the unscaled gradient.

    Checked on the device without a sync.
    """
    text = "a loss differentiated in its forward pass, straight into main_grad, must not be scaled afterwards"
    if factor.is_cuda:
        torch._assert_async(factor == 1, text)
    elif factor.item() != 1:
        raise ValueError(f"{text}: got {factor.item()}")
