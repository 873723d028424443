"""Real Megatron-Core without a GPU: the few places where it names CUDA are pointed at the CPU.

Megatron-Core is written for CUDA devices but almost all of it is plain torch. On a machine without one, `install`

1. answers `torch.cuda`'s device, stream and random-generator calls with their CPU meaning (`CUDA_CALLS`);
2. makes `Tensor.cuda()` the identity and lets `Tensor.type()` report the CUDA name that the optimizer compares with;
3. gives the modules of `PATCHED_MODULES` a `torch` whose factories read `device="cuda"` as the CPU;
4. leaves out collectives of a single rank with itself (`ALONE`), for which gloo copies all weights.

jit.py, which keeps torch's compiler out, belongs to this platform too, but has to be in place before Megatron-Core is
imported.

Where CUDA is present nothing is installed: the GPU path is Megatron-Core as published. A `TorchFunctionMode` would
need fewer lines but costs 14–46 % of a step and covers one thread only. `tests/unit/distributed` checks the tables
below against the installed Megatron-Core, so that a new release which moves something fails there, by name.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from megatron_lwz.distributed import jit, megatron_version

jit.install()  # before Megatron-Core is imported, here or by launch.py

PATCHED_MODULES = {
    "dist_checkpointing.exchange_utils": "buffers of the parallel save and load",
    "dist_checkpointing.strategies.state_dict_saver": "flag: may the previous save's metadata be reused",
    "distributed.param_and_grad_buffer": "warm-up tensor of the reduce-scatter group",
    "models.common.embeddings.rope_utils": "pinned index of the context-parallel positions",
    "optimizer.clip_grads": "norm of the gradients, count of zeros",
    "optimizer.grad_scaler": "loss scale",
    "optimizer.optimizer": "overflow flag, loss scale",
    "pipeline_parallel.schedules": "token counter of calculate_per_token_loss",
    "rerun_state_machine": "flags of the fault detector",
    "tensor_parallel.data": "sizes of a broadcast batch",
    "transformer.utils": "causal masks",
    "utils": "parameter norm, packed parameters of one sample",
}
"""Modules of megatron.core with `device="cuda"` or `pin_memory=True` in a torch factory call → its purpose."""

UNUSED_MODULES = (
    "distributed.fsdp.",
    "energy_monitor",
    "export.",
    "fp8_utils",
    "full_cuda_graph",
    "fusions.",
    "inference.",
    "models.",
    "pipeline_parallel.fine_grained_activation_offload",
    "pipeline_parallel.hybrid_cp_schedule",
    "pipeline_parallel.utils",
    "resharding.",
    "transformer.moe.",
)
"""Modules (or packages, with a final dot) that contain such a literal too, but that this project never runs.

megatron_version.py adds those of one release only.
"""

FACTORIES = ("empty", "empty_like", "ones", "tensor", "zeros")
"""The torch functions that the patched modules call with a literal device."""

ALONE = ("dist_all_gather_func", "dist_reduce_scatter_func")
"""The collectives of `distributed.param_and_grad_buffer` over weights and gradients, in place."""

CPU = torch.device("cpu")


class _Stream:
    """Replacement for a CUDA stream. On the CPU every operation has finished when its call returns."""

    def wait_event(self, *_: object) -> None: ...

    def wait_stream(self, *_: object) -> None: ...

    def record_event(self, *_: object) -> None: ...

    def synchronize(self) -> None: ...


_STREAM = _Stream()

CUDA_CALLS: dict[str, Callable[..., Any]] = {
    "current_device": lambda: CPU,
    "set_device": lambda *_: None,
    "synchronize": lambda *_: None,
    "empty_cache": lambda: None,
    "current_stream": lambda *_: _STREAM,
    "default_stream": lambda *_: _STREAM,
    "get_rng_state": lambda *_, **__: torch.get_rng_state(),
    "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
    "manual_seed": torch.manual_seed,
}
"""`torch.cuda` functions that Megatron-Core calls unconditionally → their meaning on the CPU."""


def has_gpu() -> bool:
    """Whether this process can use a CUDA device."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Returns the device of parameters and activations: this rank's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else CPU


def device_name(index: int) -> str:
    """Returns the name that the driver gives a GPU of this machine."""
    return torch.cuda.get_device_name(index)


@contextmanager
def completed() -> Iterator[None]:
    """Waits at the end of the block until this rank's GPU has done all that it was given: its time counts as the block's."""
    yield
    if has_gpu():
        torch.cuda.synchronize()


@functools.cache
def install() -> None:
    """Makes Megatron-Core usable on this machine. Idempotent. Where there is a GPU, it only checks the version.

    Raises EnvironmentSetupError for a release of Megatron-Core that is not supported.
    """
    megatron_version.check()
    megatron_version.hide_notices()
    if has_gpu():
        return
    for name, replacement in CUDA_CALLS.items():
        setattr(torch.cuda, name, replacement)
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.Tensor.type = _type_with_cuda_name(torch.Tensor.type)  # type: ignore[method-assign]
    proxy = _torch_for_cpu()
    for name in PATCHED_MODULES:
        importlib.import_module(f"megatron.core.{name}").torch = proxy  # type: ignore[attr-defined]
    buffers = importlib.import_module("megatron.core.distributed.param_and_grad_buffer")
    for name in ALONE:
        setattr(buffers, name, _unless_alone(getattr(buffers, name)))
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()  # type: ignore[attr-defined]
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)  # type: ignore[attr-defined]


def _type_with_cuda_name(original: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `Tensor.type()` without arguments return "torch.cuda.FloatTensor". Conversions are unchanged."""

    def tensor_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        name = original(self, *args, **kwargs)
        if isinstance(name, str) and not name.startswith("torch.cuda."):
            return name.replace("torch.", "torch.cuda.", 1)
        return name

    return tensor_type


def _torch_for_cpu() -> types.ModuleType:
    """Returns a copy of the `torch` namespace whose factories read a CUDA device as the CPU and never pin memory."""
    proxy = types.ModuleType("torch")
    proxy.__dict__.update(torch.__dict__)
    proxy.__getattr__ = lambda name: getattr(torch, name)  # type: ignore[method-assign]
    for name in FACTORIES:
        setattr(proxy, name, _on_cpu(getattr(torch, name)))
    return proxy


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        wanted = kwargs.get("device")
        if isinstance(wanted, int) or str(wanted).startswith("cuda"):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return create


def _unless_alone(collective: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a synchronous collective do nothing for a group of one rank whose output is its input."""

    @functools.wraps(collective)
    def run(output: torch.Tensor, given: torch.Tensor, *, group: Any, async_op: bool = False, **options: Any) -> Any:
        same = output.data_ptr() == given.data_ptr() and output.numel() == given.numel()
        if same and not async_op and group.size() == 1:
            return None
        return collective(output, given, group=group, async_op=async_op, **options)

    return run
