#!/usr/bin/env python
"""`lwz corpus`, for those who start this file: `python tools/prepare_corpus.py …` takes the same options."""

from __future__ import annotations

import sys

from megatron_lwz.cli import common
from megatron_lwz.cli.corpus import main

if __name__ == "__main__":
    sys.exit(common.run(main))
