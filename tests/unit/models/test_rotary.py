"""The RoPE angles are kept once, whatever lengths the packs have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from megatron_lwz.distributed import launch
from megatron_lwz.models.qwen2 import build_policy
from megatron_lwz.models.rotary import RotaryTable
from tests.support.tiny_step import config_of


@pytest.fixture(scope="module")
def table() -> Iterator[RotaryTable]:
    """That of a policy, as built."""
    config = config_of()
    launch.initialize(config)
    (policy,) = build_policy(config)
    yield policy.rotary_pos_emb
    launch.shutdown()


def test_lengths_share_one_table(table: RotaryTable) -> None:
    longest = table(64, packed_seq=True)
    for length in (1, 7, 33, 64):
        angles = table(length, packed_seq=True)
        assert angles.untyped_storage().data_ptr() == longest.untyped_storage().data_ptr()
        assert torch.equal(angles, table.get_emb(length))


def test_the_table_grows_with_the_longest_sequence(table: RotaryTable) -> None:
    for length in range(65, 70):
        assert torch.equal(table(length, packed_seq=True), table.get_emb(length))
    kept = [value for value in vars(table).values() if isinstance(value, Tensor)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in kept if tensor is not table.inv_freq) == 69 * 8 * 4
    assert torch.equal(table(3, offset=4), table.get_emb(3, offset=4))
