"""The implementations of the op's epilogue by name. A module is imported when its name is first requested."""

from __future__ import annotations

import importlib
import types
from functools import cache

from megatron_lwz.kernels.linear_logprob.epilogue import Epilogue

_CLASSES = {
    "torch": ("plain", "TorchEpilogue"),
    "cpp": ("cpp", "CppEpilogue"),
    "triton": ("triton", "TritonEpilogue"),
    "cuda": ("cuda", "CudaEpilogue"),
}
"""Name of an implementation → (module of this package, its class)."""

NAMES = tuple(_CLASSES)
"""The names, as in `kernels.backend`."""


def available(name: str) -> str | None:
    """Returns None when the implementation can run here, else the reason in one line."""
    try:
        return _module(name).available()
    except ImportError as error:
        return str(error)


@cache
def epilogue(name: str) -> Epilogue:
    """Returns the named implementation, which must be available."""
    return getattr(_module(name), _CLASSES[name][1])()


def _module(name: str) -> types.ModuleType:
    return importlib.import_module(f"{__package__}.{_CLASSES[name][0]}")
