"""Start and end of a process that runs one command.

With torch and Megatron-Core an interpreter spends a second or two of CPU time on work that no command needs. While
modules are imported, garbage collections look at each object again and again, although modules stay loaded. At the end
every module is taken apart. So collections begin when the imports are done, and the process ends without the last part.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_AS_MODULE = "-m"
"""`sys.argv[0]` while `python -m package.module` imports the packages around the module."""

_status = 0


def begin() -> None:
    """Stops garbage collection in a process that was started as `python -m megatron_lwz.cli.…`, until `running`."""
    if sys.argv[:1] == [_AS_MODULE]:
        gc.disable()


@contextmanager
def running() -> Iterator[None]:
    """A command runs inside the block: garbage is collected, but never among the objects that exist already.

    These are the modules, above all. Megatron runs a collection at every checkpoint.
    """
    gc.freeze()
    gc.enable()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def importing() -> Iterator[None]:
    """Imports that a running command makes. Put them inside the block."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_command(name: str) -> ModuleType:
    """Returns the module `name` of a command that `lwz` runs."""
    with importing():
        return importlib.import_module(name)


def ends_with(status: int) -> None:
    """Lets this process end as usual with `status`, up to the point where the interpreter takes modules apart.

    It waits for threads and calls all functions of `atexit` first. A process that has used a GPU ends as usual
    altogether, because profilers write their data at the very end.
    """
    global _status
    _status = status
    atexit.register(_end)


def _end() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return
    atexit.unregister(_end)
    atexit._run_exitfuncs()  # the others: _end is the last that was registered, and so the first that is called
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # the interpreter tries again, and reports the error
    os._exit(_status)
