#!/usr/bin/env python
"""Time of products with few rows on this CPU: the C++ kernel beside torch's library and beside one read of the weight.

    python tools/bench_thin_products.py [--shapes 9728x896 896x4864 151936x896] [--rows 1 4 16 48] [--threads 2]

A shape is outputs × inputs. Every way is timed in turns, and the best of the repeats counts. Weights of one shape take at
least 200 MB together, so that none of them is found in a cache, as in decoding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lwz.cli import option_types
from megatron_lwz.kernels import thin_product

_BYTES = 200e6


def main() -> None:
    """Measures and prints a table."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    print(
        f"{options.dtype}, {options.threads} threads, torch {torch.__version__}; times relative to one read of the weight"
    )
    print("| weight | rows | torch | kernel | kernel / torch |\n|---|---|---|---|---|")
    for outputs, inputs in options.shapes:
        count = max(1, round(_BYTES / (outputs * inputs * dtype.itemsize)))
        weights = [torch.randn(outputs, inputs).to(dtype) for _ in range(count)]
        for rows in options.rows:
            read, plain, kernel = _measure(weights, torch.randn(rows, inputs).to(dtype), options.repeats)
            shape = f"{outputs} × {inputs}"
            print(f"| {shape} | {rows} | {plain / read:.2f} | {kernel / read:.2f} | {kernel / plain:.2f} |", flush=True)


def _measure(weights: list[Tensor], x: Tensor, repeats: int) -> list[float]:
    """Returns the seconds of one read of all weights, of torch's products and of the kernel's."""
    ways: tuple[Callable[[Tensor], object], ...] = (
        lambda weight: weight.view(torch.int32).max(),
        lambda weight: F.linear(x, weight),
        lambda weight: thin_product.multiply(x, weight),
    )
    best = [float("inf")] * len(ways)
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first round warms up
            for index, way in enumerate(ways):
                begin = time.perf_counter()
                for weight in weights:
                    way(weight)
                best[index] = min(best[index], time.perf_counter() - begin)
    return best


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=_shape, default=[(9728, 896), (896, 4864), (151936, 896)])
    parser.add_argument("--rows", nargs="+", type=option_types.positive, default=[1, 2, 4, 8, 16, 32, 48])
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=option_types.positive, default=2)
    parser.add_argument("--repeats", type=option_types.positive, default=3)
    return parser


def _shape(text: str) -> tuple[int, int]:
    outputs, _, inputs = text.partition("x")
    return option_types.positive(outputs), option_types.positive(inputs)


if __name__ == "__main__":
    main()
