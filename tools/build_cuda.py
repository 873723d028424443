#!/usr/bin/env python
"""`lwz build-cuda`, for those who start this file: `python tools/build_cuda.py …` takes the same options."""

from __future__ import annotations

import sys

from megatron_lwz.cli import common
from megatron_lwz.cli.build_cuda import main

if __name__ == "__main__":
    sys.exit(common.run(main))
