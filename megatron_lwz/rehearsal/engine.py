"""Transformer Engine without a GPU: its real Python over a stand-in for its compiled extension.

Transformer Engine's layers, attention (also over context parallelism), optimizer and Megatron's wrappers run as they
are. Functions of the extension check that they get tensors of the device, and what engine_functions.py says of each;
those that no layer of ours needs raise when they are called.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from megatron_lwz.rehearsal.engine_functions import ANSWERS, FUNCTIONS, DType
from megatron_lwz.rehearsal.ledger import Ledger, RehearsalError

EXTENSION = "transformer_engine_torch"
_DOT_PRODUCT = "transformer_engine.pytorch.attention.dot_product_attention"
_ONNX = "transformer_engine.pytorch.onnx_extensions"
"""A module that needs packages for the export to ONNX; no layer calls it."""
_ledger: Ledger | None = None


class _Name(type):
    """A name of the extension that has no stand-in: it has members and can be compared, but not called.

    A member is a number too, as those of the extension's enumerations are: in the order in which they were asked for.
    Newer releases mirror enumerations in Python, and compare `__members__` with their own list.
    """

    @property
    def __members__(cls) -> dict[str, _Name]:
        """Returns the members that were asked for."""
        return {name: value for name, value in vars(cls).items() if isinstance(value, _Name)}

    def __getattr__(cls, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        member = _Name(name, (), {"path": f"{cls.path}.{name}", "number": len(cls.__members__)})
        setattr(cls, name, member)
        return member

    def __int__(cls) -> int:
        return int(vars(cls)["number"])

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise RehearsalError(f"{cls.path} of Transformer Engine has no stand-in")


class _Extension(ModuleType):
    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Name(name, (), {"path": name})
        setattr(self, name, made)
        return made


def install(folder: Path) -> None:
    """Makes `import transformer_engine` take its Python from `folder`, and its extension from here.

    The environment must have NVTE_PROJECT_BUILDING=1, so that it loads no library of CUDA.
    """
    sys.path.insert(0, str(folder))
    extension: Any = _Extension(EXTENSION)
    extension.__spec__ = ModuleSpec(EXTENSION, None)
    extension.DType = DType
    for name, function in FUNCTIONS.items():
        setattr(extension, name, _counted(name, function))
    for name, value in ANSWERS.items():
        setattr(extension, name, lambda *_, value=value, **__: value)
    extension.get_fused_attn_backend = functools.partial(
        _attention_backend, extension.NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen
    )
    sys.modules |= {EXTENSION: extension, _ONNX: _Extension(_ONNX)}
    common: Any = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda _: None
    functions: Any = importlib.import_module("transformer_engine.pytorch.cpp_extensions")
    functions.__getattr__ = extension.__getattr__  # its `import *` took only what the stand-in had by then
    _take_fakes_for_tensors(importlib.import_module(f"{_DOT_PRODUCT}.utils"))


def _attention_backend(ours: _Name, *asked: Any) -> Any:
    """Returns the kernel of fused attention for bf16 and any length.

    2.20 asks for it in one object, and wants to hear why there is none, too.
    """
    return (ours, "") if len(asked) == 1 else ours


def _take_fakes_for_tensors(utils: Any) -> None:
    """Fused attention is chosen for the type torch.Tensor itself, and FakeTensor is a class derived from it."""
    choose = utils.get_attention_backend
    utils.get_attention_backend = lambda params: choose(dataclasses.replace(params, qkv_type=Tensor))


def count_into(ledger: Ledger) -> None:
    """Makes the ledger the one that counts calls of the extension."""
    global _ledger
    _ledger = ledger


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if _ledger is not None:
            _ledger.launches[f"transformer_engine.{name}"] += 1
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor) and not (isinstance(tensor, FakeTensor) and tensor.is_cuda):
                    raise RehearsalError(f"{name} of Transformer Engine: a host tensor {tuple(tensor.shape)}")
        return function(*args, **kwargs)

    return call
