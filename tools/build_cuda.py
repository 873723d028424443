"""Compiles the CUDA epilogue for Hopper (csrc/cuda) to a library beside the package: python tools/build_cuda.py [--nvcc PATH]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_lwz.kernels.linear_logprob import cuda


def main() -> int:
    """Builds the library; prints its path, or why there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc", help="the compiler, if it is not on PATH ($CUDA_HOME/bin/nvcc)")
    parser.add_argument("--library", type=Path, default=cuda.LIBRARY, help="file to write; default: beside the package")
    options = parser.parse_args()
    try:
        print(cuda.build(nvcc=options.nvcc, library=options.library))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
