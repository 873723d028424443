"""Megatron-Core without torch's compiler where there is no GPU.

Megatron-Core hands some fused functions to `torch.compile` while it is imported, and that alone imports the compiler: a
quarter of a process's start on a CPU, where none of those functions is used. Megatron-Core has a switch for this, which
only works before its other modules are imported; hence an import hook. `import megatron_lwz` does not install it: that
also happens inside vLLM. Whatever imports Megatron-Core installs it first: the rooms `models` and `training` when they
are imported, and each module elsewhere that needs Megatron-Core. A test tries every one of them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

MODULE = "megatron.core.jit"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds MODULE as Python would. Its loader then turns the compiler off where there is no GPU."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """None for every other module: the next finder is asked."""
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
    """Puts the hook first in `sys.meta_path`, once. It must be called before Megatron-Core is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
