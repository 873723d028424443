"""Memory that decoding reads from end to end is asked for in huge pages, and stays what it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from megatron_lwz.distributed import huge_pages
from megatron_lwz.distributed.parking import Parked
from megatron_lwz.units import MIB

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _flags(address: int) -> str:
    """Returns the flags of the mapping that holds `address`, as Linux gives them: hg where huge pages were asked for."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line
    raise AssertionError(hex(address))


needs_huge_pages = pytest.mark.skipif(not _SETTING.exists(), reason="this kernel has no huge pages")


@needs_huge_pages
def test_only_whole_huge_pages_inside_the_tensor_are_asked_for() -> None:
    memory = huge_pages.prefer(torch.empty(16 * MIB, dtype=torch.uint8))
    assert " hg" in _flags(memory.data_ptr() + 8 * MIB)
    small = torch.empty(100)
    assert huge_pages.prefer(small) is small and " hg" not in _flags(small.data_ptr())


def test_gathered_parameters_keep_shapes_and_types_and_can_be_parked() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3, bias=False).to(torch.bfloat16))
    before = [(p, p.shape, p.dtype, p.requires_grad) for p in module.parameters()]
    huge_pages.gather(module.parameters())
    assert [(p, p.shape, p.dtype, p.requires_grad) for p in module.parameters()] == before
    assert len({p.untyped_storage().data_ptr() for p in module.parameters()}) == 1
    wanted = [torch.randn(p.shape).to(p.dtype) for p in module.parameters()]
    with torch.no_grad():
        for parameter, values in zip(module.parameters(), wanted, strict=True):
            parameter.copy_(values)
    assert all(torch.equal(p, values) for p, values in zip(module.parameters(), wanted, strict=True)), "none overlaps"
    parked = Parked(module.parameters())
    parked.out()
    assert not module[0].weight.untyped_storage().nbytes()
    parked.back()
    assert all(torch.equal(p, values) for p, values in zip(module.parameters(), wanted, strict=True))
    huge_pages.gather([])
