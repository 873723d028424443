from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_lwz.distributed.context_parallel import chunks, gathered_order, shard_indices


def _starts(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


@given(st.sampled_from([1, 2, 3, 4]), st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_shards_partition_the_pack_and_the_gathered_order_restores_it(cp_size: int, multiples: list[int]) -> None:
    starts = _starts([2 * cp_size * multiple for multiple in multiples])
    shards = [shard_indices(starts, cp_size, rank) for rank in range(cp_size)]
    gathered = torch.cat(shards)
    assert gathered[gathered_order(starts, cp_size)].tolist() == list(range(int(starts[-1])))
    assert len({shard.numel() for shard in shards}) == 1


def test_zigzag_pairs_an_early_with_a_late_chunk() -> None:
    assert shard_indices(_starts([8, 4]), 2, 0).tolist() == [0, 1, 6, 7, 8, 11]
    assert shard_indices(_starts([8, 4]), 2, 1).tolist() == [2, 3, 4, 5, 9, 10]


@given(st.sampled_from([2, 3, 4]), st.integers(1, 6))
def test_ranks_have_equal_attention_work(cp_size: int, multiple: int) -> None:
    starts = _starts([2 * cp_size * multiple])
    work = {
        sum(position - begin + 1 for begin, a, b in chunks(starts, cp_size, rank) for position in range(a, b))
        for rank in range(cp_size)
    }
    assert len(work) == 1


def test_without_context_parallelism_any_length_is_taken() -> None:
    assert shard_indices(_starts([3, 0, 2]), 1, 0).tolist() == [0, 1, 2, 3, 4]


def test_a_segment_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 2·CP = 4"):
        shard_indices(_starts([6]), 2, 0)
