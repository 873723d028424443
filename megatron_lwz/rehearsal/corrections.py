"""Where torch's FakeTensors behave unlike tensors of a machine with a GPU, outside the reach of a dispatch mode."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from megatron_lwz.distributed import host_arena
from megatron_lwz.rehearsal.device import FakeDevice


def install(device: FakeDevice) -> None:
    """Corrects them for the rest of the process."""
    _keep_modules_in_place()
    _read_lists_as_torch_does(device)
    _lock_no_pages()
    _attend_plainly()
    _make_no_context()
    _infer_without_gradients()


def _keep_modules_in_place() -> None:
    """Makes `Module.to(device)` return a module as it is when it lies there already.

    It would give each parameter itself as new data, which FakeTensors that are referenced weakly (by FakeTensorMode)
    refuse.
    """
    move = torch.nn.Module.to

    def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        held = [*module.parameters(), *module.buffers()]
        if dtype is None and device is not None and all(tensor.device.type == device.type for tensor in held):
            return module
        return move(module, *args, **kwargs)

    modules: Any = torch.nn.Module
    modules.to = to


def _read_lists_as_torch_does(device: FakeDevice) -> None:
    """Makes `tolist` read a tensor at once, and `torch.tensor` of a list that holds tensors read each of them.

    FakeTensor's own `tolist` reads number by number, which torch does not. `torch.tensor` does, with a wait for each,
    but below the reach of dispatch modes.
    """
    make = torch.tensor
    fake: Any = FakeTensor
    fake.tolist = lambda self: device.to_list(self)

    def tensor(data: Any, **kwargs: Any) -> Tensor:
        if not isinstance(data, Tensor) and any(isinstance(leaf, FakeTensor) for leaf in tree_leaves(data)):
            data = tree_map(lambda leaf: leaf.item() if isinstance(leaf, Tensor) else leaf, data)
        return make(data, **kwargs)

    namespace: Any = torch
    namespace.tensor = tensor


def _lock_no_pages() -> None:
    """Makes page-locked memory ordinary memory: the driver locks it by its address, and fake memory has none."""
    arena: Any = host_arena
    arena.locked_pages = lambda _owner, nbytes: torch.empty(nbytes, dtype=torch.uint8)


def _attend_plainly() -> None:
    """Makes torch's attention the plain one, which a GPU takes in fp32 with shared key heads.

    A torch built with CUDA would ask cuDNN and the driver which of its kernels fits, and there may be neither.
    """
    attend = F.scaled_dot_product_attention

    def plain(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if not isinstance(query, FakeTensor) or query.device.type != "cuda":
            return attend(query, key, value, **options)
        attended: Tensor = torch.ops.aten._scaled_dot_product_attention_math(query, key, value, **options)[0]
        return attended

    functions: Any = F
    functions.scaled_dot_product_attention = plain


def _make_no_context() -> None:
    """Keeps torch 2.11 from making a real tensor on the device before the first FakeTensor."""
    module: Any = fake_tensor
    module.init_gpu_context = lambda _device: None


def _infer_without_gradients() -> None:
    """Makes inference mode switch off gradients and no more: below it, torch copies to a device past dispatch modes."""

    def enter(self: Any) -> None:
        self.without_gradients = torch.no_grad()
        self.without_gradients.__enter__()

    inference: Any = torch.inference_mode
    inference.__enter__ = enter
    inference.__exit__ = lambda self, *error: self.without_gradients.__exit__(*error)
