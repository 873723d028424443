"""Disables torch's compiler in Megatron-Core where there is no GPU, and hides optional packages that do not work.

Megatron-Core passes some fused functions to `torch.compile` while it is imported. That alone imports the compiler: a
quarter of a process's start on a CPU, where none of those functions is used. Megatron-Core has a switch for this, but
it only works before its other modules are imported, and 0.19 has a module that goes past it. The optional packages
(optional.py) must be tried before Megatron-Core imports them. This module therefore installs an import hook. `import
megatron_lwz` does not install it, because that also happens inside vLLM. Code that imports Megatron-Core installs it
first: the packages `models` and `training` when they are imported, and each module elsewhere that needs Megatron-Core.
A test checks every one of them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from megatron_lwz.distributed import optional

PACKAGE = "megatron.core"
MODULE = f"{PACKAGE}.jit"
COMPILING = f"{PACKAGE}.transformer.moe.router"
"""A module of 0.19 that calls `torch.compile` itself."""


class _Finder(importlib.abc.MetaPathFinder):
    """Finds MODULE and COMPILING like Python does. Their loader disables the compiler where there is no GPU.

    When PACKAGE is asked for, it tries the optional packages first.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns None for every other module, so that Python uses the next finder."""
        if name == PACKAGE:
            optional.probe()
        if name not in (MODULE, COMPILING):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        import torch  # not before Megatron-Core itself has imported it

        compile_function, gpu = torch.compile, torch.cuda.is_available()
        if not gpu and module.__name__ == COMPILING:
            torch.compile = _as_it_is  # type: ignore[assignment]
        try:
            super().exec_module(module)
        finally:
            torch.compile = compile_function
        if not gpu and module.__name__ == MODULE:
            module.disable_jit_fuser()


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def install() -> None:
    """Inserts the hook at the front of `sys.meta_path`, once. Must be called before Megatron-Core is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
