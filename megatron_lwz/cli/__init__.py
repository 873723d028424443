"""The commands: each parses its command line, then makes one call.

Warnings inside torch, megatron and transformers are not the user's to mend, and several come while those packages are
imported: they are silenced here, before any command module is. `--traceback` shows them.
"""

import sys
import warnings

if "--traceback" not in sys.argv:
    for _library in ("megatron", "torch", "transformers"):
        warnings.filterwarnings("ignore", module=_library)
