#!/usr/bin/env python
"""Time of a decode step's attention on this CPU: the C++ kernel beside torch's attention and beside one read of the cache.

    python tools/bench_decode_attention.py [--shapes 8x2x7x64x1000] [--mixed] [--dtype fp32] [--threads 1]

A shape is sequences × key-value heads × query heads per key-value head × head dimension × cached tokens. With --mixed the
lengths of the sequences are spread evenly from a tenth of it. Every way is timed in turns, in CPU seconds, and the best of the
repeats counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lwz.cli import option_types
from megatron_lwz.kernels import decode_attention
from megatron_lwz.kernels.decode_attention import PAGE, as_page

_SHAPES = [(32, 2, 4, 32, 400), (8, 2, 7, 64, 1000), (32, 2, 7, 64, 2000), (4, 2, 7, 64, 8000)]


def main() -> None:
    """Measures and prints a table."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    lengths = "from a tenth to all" if options.mixed else "all equal"
    print(
        f"{options.dtype}, lengths {lengths}, {options.threads} threads, torch {torch.__version__}; times relative to one read"
    )
    print("| sequences × heads × queries × width × tokens | torch | kernel | kernel / torch |\n|---|---|---|---|")
    for shape in options.shapes:
        read, plain, kernel = _measure(*shape, mixed=options.mixed, dtype=dtype, repeats=options.repeats)
        print(
            f"| {' × '.join(map(str, shape))} | {plain / read:.2f} | {kernel / read:.2f} | {kernel / plain:.2f} |",
            flush=True,
        )


def _measure(
    rows: int, heads: int, queries: int, width: int, tokens: int, *, mixed: bool, dtype: torch.dtype, repeats: int
) -> list[float]:
    """Returns the seconds of one read of what is attended to, of torch's attention and of the kernel's."""
    store = torch.randn(rows, heads, 2, 1 << (tokens - 1).bit_length(), width).to(dtype)
    query = torch.randn(rows, heads, queries, width).to(dtype)
    lengths = torch.linspace(tokens / 10 if mixed else tokens, tokens, rows).long()
    hidden = torch.arange(tokens) >= lengths[:, None]
    mask = torch.zeros(rows, tokens, dtype=dtype).masked_fill_(hidden, -torch.inf)[:, None, None]
    seen = store[:, :, :, :tokens]
    newest = torch.cat((query, torch.randn(rows, heads, 2, width).to(dtype)), 2)
    angles = torch.ones(tokens, width), torch.zeros(tokens, width)
    padded = torch.nn.functional.pad(seen, (0, 0, 0, -tokens % PAGE))
    pages = [[as_page(page) for page in row.split(PAGE, 2)] for row in padded]
    addresses = torch.tensor([[page.data_ptr() for page in row] for row in pages])
    ways: tuple[Callable[[], object], ...] = (
        lambda: [_read(store[row, :, :, :length]) for row, length in enumerate(lengths.tolist())],
        lambda: F.scaled_dot_product_attention(query, seen[:, :, 0], seen[:, :, 1], mask),
        lambda: decode_attention.attend(newest, *angles, addresses, 0, lengths),
    )
    best = [float("inf")] * len(ways)
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first round warms up
            for index, way in enumerate(ways):
                begin = time.process_time()
                way()
                best[index] = min(best[index], time.process_time() - begin)
    return best


def _read(cached: Tensor) -> Tensor:
    return cached.view(torch.int32).amax()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=_shape, default=_SHAPES)
    parser.add_argument("--mixed", action="store_true", help="lengths from a tenth of the tokens to all")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=option_types.positive, default=1)
    parser.add_argument("--repeats", type=option_types.positive, default=9)
    return parser


def _shape(text: str) -> tuple[int, ...]:
    numbers = tuple(option_types.positive(number) for number in text.split("x"))
    if len(numbers) != 5:
        raise argparse.ArgumentTypeError(f"{text}: expected five numbers, as in 8x2x7x64x1000")
    return numbers


if __name__ == "__main__":
    main()
