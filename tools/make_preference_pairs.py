#!/usr/bin/env python
"""`lwz pairs`, for those who start this file: `python tools/make_preference_pairs.py …` takes the same options."""

from __future__ import annotations

import sys

from megatron_lwz.cli import common
from megatron_lwz.cli.pairs import main

if __name__ == "__main__":
    sys.exit(common.run(main))
