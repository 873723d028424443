"""NCCL through its C interface: one rank alone, two ranks on two GPUs; and memory that leaves the GPU."""

from __future__ import annotations

import ctypes
import multiprocessing
from typing import Any

import pytest
import torch

from megatron_lwz.distributed.nccl import NcclCommunicator, NcclLibrary, UniqueId
from megatron_lwz.distributed.parking import Parked
from megatron_lwz.training.weight_sync.buckets import Buckets
from megatron_lwz.training.weight_sync.channel import NcclChannel, NcclJoining
from tests.support.waiting import wait_for

pytestmark = pytest.mark.gpu

LIBRARY = "libnccl.so.2"
SHAPES = {"embed": (1000, 64), "norm": (64,), "up": (256, 64), "head": (1000, 64)}


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()}


def test_a_group_of_one_sends_to_nobody_and_can_be_given_up() -> None:
    device = torch.device("cuda", 0)
    joining = NcclJoining(NcclLibrary(LIBRARY), device)
    channel = joining.open(joining.new_id(), 1)
    data = torch.arange(100, dtype=torch.uint8, device=device)
    channel.send(data)
    wait_for(channel.sent, seconds=30, pause=0.001)
    assert torch.equal(data.cpu(), torch.arange(100, dtype=torch.uint8))
    channel.close()
    channel.close()


def receive(unique_id: bytes, sizes: list[int], received: Any) -> None:
    """Rank 1 of 2, as a worker of vLLM behaves: communicator, all-reduce, one broadcast per bucket."""
    torch.cuda.set_device(1)
    library, handle = NcclLibrary(LIBRARY), ctypes.c_void_p()
    library.call("ncclCommInitRank", ctypes.byref(handle), 2, UniqueId.from_buffer_copy(unique_id), 1)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    warm = torch.zeros(1, device="cuda")
    library.call("ncclAllReduce", warm.data_ptr(), warm.data_ptr(), 1, 7, 0, handle, stream)
    buckets = []
    for size in sizes:
        bucket = torch.empty(size, dtype=torch.uint8, device="cuda")
        library.call("ncclBroadcast", bucket.data_ptr(), bucket.data_ptr(), size, 1, 0, handle, stream)
        torch.cuda.synchronize()
        buckets.append(bytes(bucket.cpu().numpy()))
    received.put(buckets)
    library.call("ncclCommAbort", handle)


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="NCCL wants a GPU per rank")
def test_two_ranks_get_every_bucket_bit_for_bit() -> None:
    device = torch.device("cuda", 0)
    plan = Buckets(SHAPES, torch.bfloat16, 150_000)
    tensors = weights()
    sizes = [sum(tensors[name].nbytes for name in names) for names in plan.cuts]
    library = NcclLibrary(LIBRARY)
    unique_id = library.unique_id()
    context = multiprocessing.get_context("spawn")
    received = context.Queue()
    peer = context.Process(target=receive, args=(unique_id, sizes, received))
    peer.start()
    channel = NcclChannel(NcclCommunicator(library, unique_id, size=2, device=device), device)
    moved = ((name, tensor.to(device)) for name, tensor in tensors.items())
    for bucket in plan.pack(moved, device):
        channel.send(bucket)
        wait_for(channel.sent, seconds=30, pause=0.001)
    expected = b"".join(bytes(tensor.view(-1).view(torch.uint8).numpy()) for tensor in tensors.values())
    assert b"".join(received.get(timeout=60)) == expected and len(sizes) > 1
    channel.close()
    peer.join(30)
    assert peer.exitcode == 0


def park() -> None:
    before = torch.cuda.memory_reserved()
    tensor = torch.randn(64 * 2**20, device="cuda")
    copy, view = tensor.cpu(), tensor[5:10]
    parked = Parked([tensor, view])
    assert torch.cuda.memory_reserved() - before >= parked.nbytes == tensor.nbytes
    parked.out()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**21
    parked.back()
    assert torch.equal(tensor.cpu(), copy) and torch.equal(view.cpu(), copy[5:10])


def test_parked_memory_is_free_for_others_and_comes_back() -> None:
    """In a process of its own: in this one memory that other tests have freed would be taken again."""
    child = multiprocessing.get_context("spawn").Process(target=park)
    child.start()
    child.join(60)
    assert child.exitcode == 0
