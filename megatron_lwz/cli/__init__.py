"""The commands: each parses its command line, then makes one call.

Users cannot fix warnings inside torch, megatron and transformers, and several appear while those packages are imported.
They are silenced here, before any command module is imported. `--traceback` shows them.
"""

import sys
import warnings

from megatron_lwz.cli import lifetime

lifetime.begin()

if "--traceback" not in sys.argv:
    for _library in ("megatron", "torch", "transformers"):
        warnings.filterwarnings("ignore", module=_library)
