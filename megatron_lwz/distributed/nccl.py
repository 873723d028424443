"""A separate NCCL communicator between this process and processes outside the run, through NCCL's C interface.

torch.distributed can only join processes that were started together. NCCL needs only a unique id that all of them know.
The calls and their types are those of nccl.h, which have not changed since NCCL 2.0.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from megatron_lwz.errors import EnvironmentSetupError

UNIQUE_ID_BYTES = 128
_UINT8, _FLOAT32, _SUM = 1, 7, 0  # ncclDataType_t, ncclRedOp_t


class UniqueId(ctypes.Structure):
    """NCCL's ncclUniqueId, passed by value."""

    _fields_ = (("internal", ctypes.c_byte * UNIQUE_ID_BYTES),)


_HANDLE = ctypes.c_void_p
_COLLECTIVE = [_HANDLE, _HANDLE, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, _HANDLE, _HANDLE]
"""Argument types: source, destination, number of elements, data type, reduction (or root), communicator, stream."""
_ARGUMENTS: dict[str, list[Any]] = {
    "ncclGetVersion": [ctypes.POINTER(ctypes.c_int)],
    "ncclGetUniqueId": [ctypes.POINTER(UniqueId)],
    "ncclCommInitRank": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, UniqueId, ctypes.c_int],
    "ncclAllReduce": _COLLECTIVE,
    "ncclBroadcast": _COLLECTIVE,
    "ncclCommAbort": [ctypes.c_void_p],
}


class NcclLibrary:
    """The loaded libnccl. Raises EnvironmentSetupError when it cannot be loaded, and for every call that fails."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._functions = ctypes.CDLL(path)
            for name, arguments in _ARGUMENTS.items():
                function = getattr(self._functions, name)
                function.argtypes, function.restype = arguments, ctypes.c_int
            self._functions.ncclGetErrorString.argtypes = [ctypes.c_int]
            self._functions.ncclGetErrorString.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            advice = "name the engines' libnccl.so.2 in weight_sync.library"
            raise EnvironmentSetupError(f"NCCL cannot be loaded from {path!r} ({error}): {advice}") from error

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function of `_ARGUMENTS`. Other threads can run during the call."""
        code = getattr(self._functions, name)(*arguments)
        if code:
            reason = self._functions.ncclGetErrorString(code).decode(errors="replace")
            raise EnvironmentSetupError(
                f"{name} of NCCL {self.version()} ({self._path}) failed: {reason}; all ranks need the same NCCL "
                "(weight_sync.library), each a GPU of its own, and a network between them (NCCL_DEBUG=INFO tells more)"
            )

    def version(self) -> str:
        """Returns the version of NCCL, for example 2.27.5."""
        found = ctypes.c_int()
        self._functions.ncclGetVersion(ctypes.byref(found))
        number = found.value
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def unique_id(self) -> bytes:
        """Returns a new id of 128 bytes. Processes that create a communicator with the same id find each other."""
        found = UniqueId()
        self.call("ncclGetUniqueId", ctypes.byref(found))
        return bytes(found)


class NcclCommunicator:
    """This process as rank 0 of `size`, on the current CUDA device, with its own stream. Every call is asynchronous."""

    def __init__(self, library: NcclLibrary, unique_id: bytes, *, size: int, device: torch.device) -> None:
        """Blocks until all ranks have joined. Raises EnvironmentSetupError."""
        self._library = library
        self._handle: ctypes.c_void_p | None = None
        handle = ctypes.c_void_p()
        with torch.cuda.device(device):
            library.call("ncclCommInitRank", ctypes.byref(handle), size, UniqueId.from_buffer_copy(unique_id), 0)
            self._handle = handle
            self._stream = torch.cuda.Stream(device)

    def all_reduce(self, tensor: Tensor) -> None:
        """Sums an fp32 CUDA tensor over the ranks, in place."""
        data = tensor.data_ptr()
        self._enqueue("ncclAllReduce", data, data, tensor.numel(), _FLOAT32, _SUM)

    def broadcast(self, data: Tensor) -> None:
        """Sends this rank's bytes, a contiguous uint8 CUDA tensor.

        The tensor must not change until `done` returns True.
        """
        self._enqueue("ncclBroadcast", data.data_ptr(), data.data_ptr(), data.numel(), _UINT8, 0)

    def done(self) -> bool:
        """Whether all operations enqueued so far have run."""
        return bool(self._stream.query())

    def abort(self) -> None:
        """Aborts the communicator and the operations that are still enqueued. May be called again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.call("ncclCommAbort", handle)

    def _enqueue(self, name: str, *arguments: Any) -> None:
        assert self._handle is not None, "the communicator was given up"
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._library.call(name, *arguments, self._handle, ctypes.c_void_p(self._stream.cuda_stream))
