"""Disables torch's compiler in Megatron-Core where there is no GPU, and hides optional packages that do not work.

Megatron-Core passes some fused functions to `torch.compile` while it is imported. That alone imports the compiler: a
quarter of a process's start on a CPU, where none of those functions is used. Megatron-Core has a switch for this, but
it only works before its other modules are imported. The optional packages (optional.py) must be tried before
Megatron-Core imports them. This module therefore installs an import hook. `import megatron_lwz` does not install it,
because that also happens inside vLLM. Code that imports Megatron-Core installs it first: the packages `models` and
`training` when they are imported, and each module elsewhere that needs Megatron-Core. A test checks every one of them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

from megatron_lwz.distributed import optional

PACKAGE = "megatron.core"
MODULE = f"{PACKAGE}.jit"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds MODULE like Python does. Its loader then disables the compiler where there is no GPU.

    When PACKAGE is asked for, it tries the optional packages first.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns None for every other module, so that Python uses the next finder."""
        if name == PACKAGE:
            optional.probe()
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        import torch  # not before Megatron-Core itself has imported it

        if not torch.cuda.is_available():
            module.disable_jit_fuser()


def install() -> None:
    """Inserts the hook at the front of `sys.meta_path`, once. Must be called before Megatron-Core is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
