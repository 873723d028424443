"""Memory goes and comes back under the tensors."""

import torch

from megatron_lwz.distributed.host_arena import ALIGNMENT
from megatron_lwz.distributed.parking import Parked


def test_tensors_and_views_come_back_bit_for_bit_and_shared_memory_moves_once() -> None:
    torch.manual_seed(0)
    whole = torch.arange(40, dtype=torch.float32)
    view, other, empty = whole[10:20].view(2, 5), torch.randn(3).bfloat16(), torch.zeros(0)
    before = [whole.clone(), view.clone(), other.clone()]
    parked = Parked([view, whole, other, empty])
    assert parked.nbytes == 160 + 6
    for _ in range(2):
        parked.out()
        assert parked.is_out and whole.untyped_storage().nbytes() == other.untyped_storage().nbytes() == 0
        assert whole.shape == (40,) and view.shape == (2, 5)
        parked.out()  # once is enough
        parked.back()
        parked.back()
        assert all(torch.equal(now, then) for now, then in zip([whole, view, other], before, strict=True))
    whole[10] = 7.0
    assert view[0, 0] == 7.0, "the view is still a view"


def test_what_is_not_kept_comes_back_as_zeros() -> None:
    gradient = torch.ones(8)
    parked = Parked([gradient], keep=False)
    parked.out()
    assert gradient.untyped_storage().nbytes() == 0
    parked.back()
    assert torch.equal(gradient, torch.zeros(8))


def test_memory_that_numpy_shares_stays() -> None:
    shared, own = torch.ones(4), torch.ones(4)
    seen = shared.numpy()
    for keep in (True, False):
        parked = Parked([shared, own], keep=keep)
        assert parked.nbytes == 16
        parked.out()
        assert shared.tolist() == [1.0] * 4 and own.untyped_storage().nbytes() == 0
        parked.back()
    seen[0] = 5.0
    assert shared[0] == 5.0


def test_the_copies_take_the_memory_that_they_need_in_one_piece() -> None:
    tensors = [torch.randn(size) for size in (33_000, 1, 70_001)]  # as powers of two: 262144 + 4 + 524288 bytes
    before = [tensor.clone() for tensor in tensors]
    parked = Parked(tensors)
    assert parked.host_nbytes == 0
    parked.out()
    assert parked.nbytes <= parked.host_nbytes < parked.nbytes + 3 * ALIGNMENT
    parked.back()
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))
