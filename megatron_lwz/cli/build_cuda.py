"""`lwz build-cuda [--nvcc PATH]`: compiles the CUDA epilogue for Hopper (kernels/cuda) to a library beside the package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_lwz.cli import common
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.kernels.linear_logprob import cuda


def main(argv: Sequence[str]) -> None:
    """Builds the library and prints its path. Raises EnvironmentSetupError with what the compiler says."""
    parser = common.Parser(prog="lwz build-cuda", description="Compile the CUDA epilogue for Hopper; needs no GPU.")
    parser.add_argument("--nvcc", help="the compiler, if it is not on PATH ($CUDA_HOME/bin/nvcc)")
    parser.add_argument("--library", type=Path, default=cuda.LIBRARY, help="file to write; default: beside the package")
    options = parser.parse_args(list(argv))
    try:
        made = cuda.build(nvcc=options.nvcc, library=options.library)
    except RuntimeError as error:
        raise EnvironmentSetupError(str(error)) from error
    common.console().print(str(made), markup=False)


if __name__ == "__main__":
    sys.exit(common.run(main))
