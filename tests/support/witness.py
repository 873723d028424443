"""Says what it finds itself to be, for tests/unit/test_warm.py; as `--child`, what a child of it is."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from megatron_lwz.http.orphan import dying_with_us


def stop(*_: object) -> None:
    print("told")
    sys.exit(7)


def inherited() -> list[int]:
    """The open descriptors that a new program would have, too."""
    found = []
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):  # the one that listed them
            found += [int(entry.name)] if os.get_inheritable(int(entry.name)) else []
    return sorted(found)


def main(arguments: list[str]) -> None:
    if arguments == ["--child"]:
        line = dying_with_us([sys.executable, "-m", "tests.support.witness", "--stay"])
        subprocess.Popen(line, start_new_session=True).wait()
    elif arguments == ["--wait"]:
        signal.signal(signal.SIGTERM, stop)
        atexit.register(print, "exiting")
        print("ready")
        while True:
            time.sleep(0.01)
    else:
        found = {
            "arguments": arguments, "program": sys.argv[0], "folder": str(Path.cwd()), "path": sys.path[0], "env": dict(os.environ),
            "parent": os.getppid(), "name": __name__, "main": sys.modules["__main__"].__spec__ and __spec__.name,
            "streams": [stream.encoding for stream in (sys.stdin, sys.stdout, sys.stderr)],
            "megatron": "megatron.core" in sys.modules, "inherited": inherited(),
        }  # fmt: skip
        if arguments == ["--stay"]:
            found |= {"pid": os.getpid(), "leads_session": os.getsid(0) == os.getpid()}
        print(json.dumps(found), flush=True)
        while arguments == ["--stay"]:
            time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1:])
