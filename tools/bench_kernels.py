#!/usr/bin/env python
"""`lwz bench-kernels`, for those who start this file: `python tools/bench_kernels.py …` takes the same options."""

from __future__ import annotations

import sys

from megatron_lwz.cli import common
from megatron_lwz.cli.bench_kernels import main

if __name__ == "__main__":
    sys.exit(common.run(main))
