"""Where the engines' GPUs meet rank 0: a TCP store that holds the NCCL unique id, in the form that vLLM reads.

vLLM (`StatelessProcessGroup`, `PyNcclCommunicator`) takes from the store, under a fixed key, a pickle of its ctypes class
`ncclUniqueId`. Its bytes are laid out here by hand: nothing is pickled, and what others write to the store is never read.
"""

from __future__ import annotations

import datetime
import socket
from urllib.parse import urlsplit

import torch.distributed as dist

from megatron_lwz.distributed.nccl import UNIQUE_ID_BYTES
from megatron_lwz.errors import EngineError
from megatron_lwz.http.ports import bind

UNIQUE_ID_KEY = "broadcast_from/0/0"
"""The first thing that rank 0 broadcasts in a vLLM `StatelessProcessGroup`."""
_CLASS = (b"vllm.distributed.device_communicators.pynccl_wrapper", b"ncclUniqueId")


def unique_id_message(unique_id: bytes) -> bytes:
    """The pickle (protocol 4) of a ctypes structure: `_ctypes._unpickle(class, ({}, bytes))`."""
    if len(unique_id) != UNIQUE_ID_BYTES:
        raise ValueError(f"an NCCL unique id has {UNIQUE_ID_BYTES} bytes, not {len(unique_id)}")

    def named(module: bytes, name: bytes) -> bytes:
        return b"".join(b"\x8c" + bytes([len(text)]) + text for text in (module, name)) + b"\x93"  # STACK_GLOBAL

    state = b"}" + b"C" + bytes([len(unique_id)]) + unique_id + b"\x86"  # ({}, bytes)
    return b"\x80\x04" + named(b"_ctypes", b"_unpickle") + named(*_CLASS) + state + b"\x86" + b"R."


class MeetingPoint:
    """A listening TCP store, bound to one address of this machine."""

    def __init__(self, address: str, port: int, *, size: int, timeout: float) -> None:
        """`port` 0: any free one. `size` counts rank 0 and every GPU of the engines. Raises EnvironmentSetupError."""
        listener = bind(address, port)
        listener.listen()
        self.address, self.port = address, int(listener.getsockname()[1])
        self._store = dist.TCPStore(
            address,
            self.port,
            world_size=size,
            is_master=True,
            wait_for_workers=False,  # an engine that refuses must not hold us up
            timeout=datetime.timedelta(seconds=timeout),
            master_listen_fd=listener.detach(),
            use_libuv=False,
        )

    def publish(self, unique_id: bytes) -> None:
        """Gives the unique id to everyone who asks."""
        self._store.set(UNIQUE_ID_KEY, unique_id_message(unique_id))  # type: ignore[arg-type]


def address_towards(url: str) -> str:
    """This machine's address on the way to `url`. Raises EngineError where none leads there."""
    parts = urlsplit(url)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # a datagram socket: nothing is sent
            return str(probe.getsockname()[0])
    except OSError as error:
        raise EngineError(url, f"cannot be reached from here ({error}): set weight_sync.address") from error
