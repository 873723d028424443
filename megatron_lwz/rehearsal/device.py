"""The fake device: a dispatch mode above FakeTensorMode that sees every operation of a rank.

It counts memory and waits, refuses what a GPU would refuse and FakeTensorMode lets pass, and knows the content of small
tensors that are made of known ones (indices, lengths, masks, loss weights), so that code whose shapes depend on content
runs as it would: `nonzero`, boolean indices, `tolist`. Content is kept as a CPU tensor beside the fake one. Views of a
known tensor are views of its content.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from megatron_lwz.rehearsal import traffic
from megatron_lwz.rehearsal.ledger import BLOCK, Ledger, RehearsalError
from megatron_lwz.units import MIB

aten, c10d = torch.ops.aten, torch.ops.c10d

KNOWN_BYTES = 8 * MIB
"""Content of tensors up to this size is kept; floating point on the host up to HOST_FLOAT_BYTES."""
HOST_FLOAT_BYTES = 2**16
_CPU = torch.device("cpu")
_EMPTY = (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default)
_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
_COUNTED_BY_CONTENT = (aten.nonzero.default, aten.bincount.default, aten.masked_select.default, aten.equal.default)
"""Operations whose result's shape or value the host reads back."""
_PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.addmm_, aten.baddbmm)


class _Shapes(FakeTensorMode):
    """FakeTensorMode that takes `cuda` as a device without a driver: it would else compute constants on it."""

    @property
    def avoid_device_init(self) -> bool:
        """Always."""
        return True


class FakeDevice(TorchDispatchMode):
    """`with device.active():` everything on `cuda` is fake. Tensors made inside are meaningless outside."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.arriving_shape: Sequence[int] | None = None
        """Shape of the activations that other pipeline stages send: the content of the messages that announce them."""
        self.assumed_integer: int | None = None
        """What the host reads where the content is not known; None: that is an error. For tokens drawn from logits."""
        self._fake = _Shapes(allow_non_fake_inputs=True)
        self._content: Any = WeakIdKeyDictionary()  # Tensor → its values, a CPU tensor
        self._overwritten: set[int] = set()
        self._live: dict[int, int] = {}

    def __enter__(self) -> FakeDevice:
        self._fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def content(self, tensor: Tensor) -> Tensor | None:
        """Returns the values of a tensor on the CPU, None if they are not known. Host tensors are their own content."""
        if not isinstance(tensor, FakeTensor):
            return tensor
        found = self._content.get(tensor)
        if found is not None and found.untyped_storage()._cdata in self._overwritten:
            return None
        return found

    def forget(self, tensor: Tensor) -> None:
        """Notes that something that is not seen (a kernel, another rank) writes to the tensor."""
        found = self._content.get(tensor)
        if found is None:
            return
        storage = found.untyped_storage()
        if storage._cdata not in self._overwritten:
            self._overwritten.add(storage._cdata)
            weakref.finalize(storage, self._overwritten.discard, storage._cdata)  # its address may be used again

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        if func is aten._local_scalar_dense.default:
            return self._read_scalar(args[0])
        if not fakes and not _names_device(kwargs):
            return self._on_host(func, args, kwargs, tensors)
        if func in _INDEXING and not _is_masked_fill(func, args):
            args = (args[0], self._without_masks(args[0], args[1]), *args[2:])
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._count_waits(func, args, kwargs)
        if (found := traffic.seen(func, args)) is not None:
            self.ledger.transfer(*found)
        _check(func, args)
        contents = [self.content(tensor) for tensor in tensors]
        whole = all(value is not None and value.numel() * value.element_size() <= KNOWN_BYTES for value in contents)
        out = self._shapes(func, args, kwargs, whole)
        if whole and self._is_worth_knowing(func, out, tensors):
            out = self._compute(func, args, kwargs, out, fakes)
        else:
            for tensor in _written(func, args, kwargs):
                self.forget(tensor)
        if func is c10d.recv_.default:
            self._announce(args[0])
        for leaf in tree_leaves(out):
            if isinstance(leaf, FakeTensor):
                self._count_memory(leaf)
        return out

    def _on_host(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        """Runs an operation of the CPU for real, except that large tensors are not allocated."""
        real = {name: value for name, value in kwargs.items() if name != "pin_memory"}  # there is nothing to pin for
        if tensors:
            return _real(func, args, real)
        made = func(*args, **real)
        if isinstance(made, FakeTensor):
            limit = HOST_FLOAT_BYTES if made.dtype.is_floating_point else KNOWN_BYTES
            if made.numel() * made.element_size() <= limit:
                return _real(func, args, real)
            self._count_memory(made)
        return made

    def _read_scalar(self, tensor: Tensor) -> Any:
        """Returns `tensor.item()`: from the content, else a neutral number."""
        if isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
            self.ledger.wait("item")
        value = self.content(tensor)
        if value is not None:
            return _real(lambda: value.item(), (), {})
        if tensor.dtype == torch.bool:
            return True
        if tensor.dtype.is_floating_point:
            return 1.0
        if self.assumed_integer is not None:
            return self.assumed_integer
        raise RehearsalError(
            f"the host reads an integer whose value the rehearsal does not know, {tuple(tensor.shape)}"
        )

    def to_list(self, tensor: Tensor) -> Any:
        """Returns `tensor.tolist()`, which copies a tensor of the device to the host once."""
        if tensor.device.type == "cuda":
            self.ledger.wait("tolist")
        value = self.content(tensor)
        assumed = 1
        if value is None and not tensor.dtype.is_floating_point and tensor.dtype != torch.bool:
            if self.assumed_integer is None:
                raise RehearsalError(
                    f"the host reads integers whose values the rehearsal does not know, {tuple(tensor.shape)}"
                )
            assumed = self.assumed_integer
        return _real(
            lambda: (torch.full(tensor.shape, assumed, dtype=tensor.dtype) if value is None else value).tolist(), (), {}
        )

    def _without_masks(self, target: Tensor, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Replaces boolean indices by positions, as a GPU does, which makes the host wait; host indices do too."""
        found: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                if index is not None and target.device.type == "cuda" and index.device.type == "cpu" and index.dim():
                    self.ledger.wait("index on the host")
                found.append(index)
                continue
            if index.device.type == "cuda":
                self.ledger.wait("boolean index")
            mask = self.content(index)
            if mask is None:
                raise RehearsalError(f"a boolean index of unknown content, {tuple(index.shape)}")
            places = _real(aten.nonzero_numpy.default, (mask,), {})
            found += [self._with_content(place, index.device) for place in places]
        return found

    def _count_waits(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if func in _COUNTED_BY_CONTENT:
            if args[0].device.type == "cuda":
                self.ledger.wait(str(func).removeprefix("aten.").removesuffix(".default"))
        elif func is aten._to_copy.default:
            source, target = args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type
            self._count_copy(source, target, asynchronous=bool(kwargs.get("non_blocking")))
        elif func is aten.copy_.default and isinstance(args[1], Tensor):
            asynchronous = len(args) > 2 and bool(args[2])
            self._count_copy(args[1].device.type, args[0].device.type, asynchronous=asynchronous)

    def _count_copy(self, source: str, target: str, *, asynchronous: bool) -> None:
        """A copy between host and device waits unless it is asynchronous, in both directions."""
        if source != target and not asynchronous:
            self.ledger.wait("copy to the host" if target == "cpu" else "copy to the device")

    def _shapes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], whole: bool) -> Any:
        """Runs the operation on shapes alone. Returns None where the shape depends on content that is known."""
        if (
            func is aten.addmm.dtype_out
        ):  # before 2.13 torch takes the dtype for a factor; the product alone has these shapes
            func, args, kwargs = aten.mm.dtype_out, args[1:], {"out": kwargs["out"]}
        try:
            return func(*args, **kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            if whole:
                return None
            if func is aten.nonzero.default and args[0].dim() == 1:  # unknown content: as if every element were true
                return self._with_content(_real(torch.arange, (args[0].shape[0],), {})[:, None], args[0].device)
            raise RehearsalError(f"{func}: the shape of its result depends on content that is not known") from error

    def _is_worth_knowing(self, func: Any, out: Any, tensors: list[Tensor]) -> bool:
        if func in _EMPTY or str(func).startswith("c10d."):
            return False
        if not isinstance(out, Tensor):
            return True
        size = out.numel() * out.element_size()
        return size <= (HOST_FLOAT_BYTES if out.dtype.is_floating_point and not tensors else KNOWN_BYTES)

    def _compute(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, fakes: list[FakeTensor]
    ) -> Any:
        """Runs the operation on the content too; returns its result, fake, with the content beside it."""
        options = {
            name: (_CPU if name == "device" else value) for name, value in kwargs.items() if name != "pin_memory"
        }
        inputs = tree_map(lambda leaf: self.content(leaf) if isinstance(leaf, Tensor) else leaf, (args, options))
        found = _real(func, *inputs)
        device = fakes[0].device if fakes else torch.device(kwargs["device"])
        if out is None:
            return tree_map(lambda leaf: self._with_content(leaf, device) if isinstance(leaf, Tensor) else leaf, found)
        for leaf, value in zip(tree_leaves(out), tree_leaves(found), strict=True):
            if isinstance(leaf, FakeTensor) and isinstance(value, Tensor):
                self._content[leaf] = value
        return out

    def _with_content(self, value: Tensor, device: torch.device) -> Tensor:
        """Returns a fake tensor of this content on `device`; on the CPU the content itself."""
        if device.type == "cpu":
            return value
        with self._fake:
            made = torch.empty(value.shape, dtype=value.dtype, device=device)
        self._content[made] = value
        return made

    def _announce(self, received: Sequence[Tensor]) -> None:
        """Fills in the shapes that a pipeline stage sends ahead of its activations."""
        for tensor in received:
            if tensor.dtype == torch.int64 and self.arriving_shape is not None:
                self._content[tensor] = _real(torch.tensor, (self.arriving_shape,), {})

    def _count_memory(self, tensor: FakeTensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        on_device = tensor.device.type == "cuda"
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._live[key] = size
        self.ledger.allocated(size, on_device=on_device)
        weakref.finalize(storage, self._freed, key, on_device)

    def _freed(self, key: int, on_device: bool) -> None:
        self.ledger.allocated(-self._live.pop(key), on_device=on_device)


def _is_masked_fill(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether this is `tensor[mask] = number`, which torch computes in one launch, without positions."""
    if func is aten.index.Tensor or (len(args) > 3 and args[3]):  # accumulating needs positions
        return False
    masks = [index for index in args[1] if index is not None]
    return len(masks) == 1 and masks[0].dtype == torch.bool and args[2].numel() == 1


def _names_device(kwargs: Mapping[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cuda"


def _real(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    with unset_fake_temporarily():
        return func(*args, **kwargs)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Returns the arguments that the operation writes to."""
    schema = func._schema
    if not schema.is_mutable:
        return []
    named = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | dict(kwargs)
    targets = [argument.name for argument in schema.arguments if argument.is_write]
    return [leaf for name in targets for leaf in tree_leaves(named.get(name)) if isinstance(leaf, Tensor)]


def _check(func: Any, args: tuple[Any, ...]) -> None:
    """Refuses products of different dtypes, which FakeTensorMode computes and cuBLAS does not."""
    if func.overloadpacket not in _PRODUCTS:
        return
    factors = [argument for argument in args if isinstance(argument, Tensor)][-2:]
    if factors[0].dtype != factors[1].dtype:
        raise RehearsalError(f"{func}: a product of {factors[0].dtype} and {factors[1].dtype}")
