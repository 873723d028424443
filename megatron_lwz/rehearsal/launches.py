"""Replaces the launch of Triton kernels: nothing runs, but everything that a launch gets is checked and counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton.backends.nvidia.compiler import CUDAOptions
from triton.runtime.jit import JITFunction

from megatron_lwz.rehearsal.device import FakeDevice
from megatron_lwz.rehearsal.ledger import RehearsalError

_GRID_LIMITS = (2**31 - 1, 2**16 - 1, 2**16 - 1)
_OPTIONS = {field.name for field in dataclasses.fields(CUDAOptions)}
_NUMBERS = (bool, int, float)


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch: the kernel's name `<package>.<function>`, its grid of three, and all arguments by name."""

    name: str
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def fail(self, argument: str, what: str) -> None:
        """Raises RehearsalError about an argument."""
        raise RehearsalError(f"kernel {self.name}, argument {argument}: {what}")

    def tensor(self, argument: str, dtypes: torch.dtype | tuple[torch.dtype, ...], size: int | None = None) -> Tensor:
        """Requires a contiguous tensor of one of the dtypes, with exactly `size` elements; returns it."""
        value, wanted = self[argument], dtypes if isinstance(dtypes, tuple) else (dtypes,)
        if not isinstance(value, Tensor):
            self.fail(argument, f"{value!r} must be a tensor")
        if value.dtype not in wanted:
            self.fail(argument, f"{value.dtype} must be {' or '.join(map(str, wanted))}")
        if size is not None:
            if not value.is_contiguous():
                self.fail(argument, f"strides {value.stride()} of {tuple(value.shape)} must be contiguous")
            if value.numel() != size:
                self.fail(argument, f"{tuple(value.shape)} must have {size} elements")
        return value

    def optional(self, argument: str, dtype: torch.dtype, size: int | None = None) -> Tensor | None:
        """Works like `tensor`, but None is allowed."""
        return None if self[argument] is None else self.tensor(argument, dtype, size)

    def equal(self, argument: str, value: object) -> None:
        """Requires the value of an argument."""
        if self[argument] != value:
            self.fail(argument, f"{self[argument]!r} must be {value!r}")

    def block(self, argument: str, *, at_least: int = 1) -> int:
        """Requires a block size: a power of two, of `at_least` elements."""
        size = self[argument]
        if size < at_least or size & (size - 1):
            self.fail(argument, f"{size} must be a power of two and at least {at_least}")
        return int(size)

    def programs(self, *wanted: int) -> None:
        """Requires the grid."""
        grid = (*wanted, 1, 1)[:3]
        if self.grid != grid:
            raise RehearsalError(f"kernel {self.name}: grid {self.grid} must be {grid}")


Contract = Callable[[Launch], None]
"""Raises RehearsalError for a launch that a kernel could not serve."""


def install(device: FakeDevice, contracts: Mapping[str, Contract]) -> None:
    """Checks and counts all Triton launches of the process from now on, whatever module they are in.

    A kernel without a contract is only checked for what holds of every kernel.
    """

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launch = _launch(kernel, args, kwargs, grid)
        device.ledger.launches[launch.name] += 1
        contract = contracts.get(launch.name)
        if contract is not None:
            contract(launch)
        for value in launch.arguments.values():
            if isinstance(value, Tensor) and value.is_floating_point():  # integers are inputs of all our kernels
                device.forget(value)

    JITFunction.run = run


def kernel_name(kernel: Any) -> str:
    """Returns `<package>.<function>` of a Triton kernel."""
    return f"{kernel.module.rsplit('.', 2)[-2]}.{kernel.__name__}"


def _launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], grid: Any) -> Launch:
    name = kernel_name(kernel)
    if len(args) > len(kernel.arg_names):
        raise RehearsalError(f"kernel {name}: {len(args)} arguments, it takes {len(kernel.arg_names)}")
    given = dict(zip(kernel.arg_names, args, strict=False))
    if twice := given.keys() & kwargs.keys():
        raise RehearsalError(f"kernel {name}: {min(twice)} is given twice")
    given |= kwargs
    options = {key: given.pop(key) for key in list(given) if key not in kernel.arg_names}
    if unknown := options.keys() - _OPTIONS:
        raise RehearsalError(f"kernel {name}: no argument or option is called {min(unknown)}")
    if missing := set(kernel.arg_names) - given.keys():
        raise RehearsalError(f"kernel {name}: argument {min(missing)} is missing")
    warps = options.get("num_warps", 4)
    if warps not in (1, 2, 4, 8, 16, 32):
        raise RehearsalError(f"kernel {name}: num_warps {warps} must be a power of two, at most 32")
    launch = Launch(name, _grid(name, grid, given), given)
    for parameter in kernel.params:
        _check_argument(launch, parameter.name, given[parameter.name], constant=parameter.is_constexpr)
    return launch


def _grid(name: str, grid: Any, given: Mapping[str, Any]) -> tuple[int, int, int]:
    sizes = grid(given) if callable(grid) else grid
    whole = (*((sizes,) if isinstance(sizes, int) else sizes), 1, 1, 1)[:3]
    if not all(type(size) is int and 0 <= size <= limit for size, limit in zip(whole, _GRID_LIMITS, strict=True)):
        raise RehearsalError(f"kernel {name}: grid {whole} must be integers up to {_GRID_LIMITS}")
    return whole


def _check_argument(launch: Launch, name: str, value: Any, *, constant: bool) -> None:
    """Checks what holds of every kernel: tensors on the device, numbers that fit, constants that can be compiled in."""
    if isinstance(value, Tensor):
        if constant:
            launch.fail(name, "a tensor cannot be a compile-time constant")
        if not isinstance(value, FakeTensor) or value.device.type != "cuda":
            launch.fail(name, "a host tensor: the GPU cannot read it")
        return
    if value is None:
        return
    if not isinstance(value, _NUMBERS) and not (
        constant and isinstance(value, str | torch.dtype | triton.language.dtype)
    ):
        launch.fail(name, f"{value!r} ({type(value).__name__}) must be a number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        launch.fail(name, f"{value} does not fit 64 bits")
