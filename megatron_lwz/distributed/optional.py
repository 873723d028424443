"""The packages that are used where they are installed and work: Transformer Engine, NVIDIA's Apex, flash-attn.

Megatron-Core imports them while it is imported itself, module by module, and in most places expects no error but
ImportError. A package with a missing library (OSError), or one whose versions do not match (AssertionError,
RuntimeError), would end the run there; one that is only half there would be used in some modules and not in others. So
each package is tried once, just before Megatron-Core is imported (`jit.py` calls `probe`). One that cannot be used is
hidden from every later import: Megatron-Core and this project then do without it, as if it were not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache

NO_GPU = "there is no GPU"
NOT_INSTALLED = "not installed"

_NEEDED = {
    "transformer_engine": ("transformer_engine.pytorch",),  # its top level swallows a failed import of this
    "flash_attn": ("flash_attn:flash_attn_varlen_func",),
    "apex": ("apex.optimizers", "amp_C"),  # without its compiled half Apex imports well, and its Adam fails later
    "fused_weight_gradient_mlp_cuda": (),
}
"""Package → the modules, or `module:name`, that must be there too. Transformer Engine first: it imports flash-attn."""

_PARTS = {"transformer_engine": ("transformer_engine_torch",), "apex": ("amp_C",)}
"""Package → modules outside it that belong to it."""


@cache
def probe() -> dict[str, str | None]:
    """Imports every package that is installed, once, and hides those that fail.

    Returns for each why it cannot be used, in one line; None if it can. Without a GPU none can: all are hidden, because
    Megatron-Core would choose their CUDA-only optimizer.
    """
    import torch  # not when this module is imported: torch takes long

    return {name: _unusable(name, gpu=torch.cuda.is_available()) for name in _NEEDED}


def unusable(name: str) -> str | None:
    """Returns why the package cannot be used in this process, in one line; None if it can."""
    return probe()[name]


def broken() -> dict[str, str]:
    """Returns the packages that are installed but cannot be used although there is a GPU, each with the reason."""
    return {name: reason for name, reason in probe().items() if reason not in (None, NO_GPU, NOT_INSTALLED)}


def _unusable(name: str, *, gpu: bool) -> str | None:
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return NOT_INSTALLED
    reason = _failure(name) if gpu else NO_GPU
    if reason is not None:
        _hide(name)
    return reason


def _failure(name: str) -> str | None:
    """Imports the package with all that is needed of it. Returns the error in one line."""
    try:
        for needed in (name, *_NEEDED[name]):
            module, _, attribute = needed.partition(":")
            found = importlib.import_module(module)
            if attribute and not hasattr(found, attribute):
                return f"it has no {attribute}"
    except Exception as error:  # a package may raise whatever it likes while it is imported
        return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
    return None


def _hide(name: str) -> None:
    """Makes every later import of the package an ImportError, also of the submodules that were imported already."""
    for top in (name, *_PARTS.get(name, ())):
        for module in [module for module in sys.modules if module.startswith(f"{top}.")]:
            del sys.modules[module]
        sys.modules[top] = None  # type: ignore[assignment]
