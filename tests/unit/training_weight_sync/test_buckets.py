"""Where buckets are cut, what they hold, and what is held while they are packed."""

import weakref
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.training.weight_sync.buckets import Buckets, cut

CPU = torch.device("cpu")


@settings(max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(0, 120))
def test_a_bucket_ends_with_the_tensor_that_takes_it_over_the_limit(sizes: list[int], limit: int) -> None:
    named = {f"t{index}": size for index, size in enumerate(sizes)}
    buckets = cut(named, limit)
    assert [name for names in buckets for name in names] == list(named)
    for index, names in enumerate(buckets):
        assert names and sum(named[name] for name in names[:-1]) <= limit
        if index < len(buckets) - 1:
            assert sum(named[name] for name in names) > limit


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=12), st.integers(1, 400))
def test_buckets_hold_the_bytes_of_all_tensors_in_order_within_the_bound(shapes: list[list[int]], most: int) -> None:
    torch.manual_seed(0)
    named = {f"t{index}": tuple(shape) for index, shape in enumerate(shapes)}
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in named.items()}
    plan = Buckets(named, torch.bfloat16, most)
    packed = [bucket.clone() for bucket in plan.pack(tensors.items(), CPU)]
    joined = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors.values()])
    assert torch.equal(torch.cat(packed), joined)
    assert [bucket.numel() for bucket in packed] == [sum(2 * prod(named[n]) for n in names) for names in plan.cuts]
    assert plan.largest == max(bucket.numel() for bucket in packed)
    assert plan.largest <= max(most, *(2 * prod(shape) for shape in shapes))


def test_packing_holds_one_bucket_and_one_tensor() -> None:
    torch.manual_seed(0)
    shapes = {f"t{index}": (64,) for index in range(40)}
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def stream():
        nonlocal most
        for name in shapes:
            tensor = torch.randn(64)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            yield name, tensor
            del tensor

    plan = Buckets(shapes, torch.float32, 8 * 256)
    stores = {bucket.untyped_storage().data_ptr() for bucket in plan.pack(stream(), CPU)}
    assert most == 1 and len(stores) == 1 and plan.largest <= 8 * 256 and len(plan.cuts) > 4


def test_a_stream_in_another_order_is_an_error_of_ours() -> None:
    plan = Buckets({"a": (2,), "b": (2,)}, torch.float32, 100)
    with pytest.raises(AssertionError):
        list(plan.pack([("b", torch.zeros(2)), ("a", torch.zeros(2))], CPU))


def test_the_receiver_is_told_names_types_and_shapes() -> None:
    plan = Buckets({"a": (2, 3), "b": (4,)}, torch.bfloat16, 100)
    assert plan.describe() == {"names": ["a", "b"], "dtype_names": ["bfloat16"] * 2, "shapes": [[2, 3], [4]]}
    assert plan.limit == 88
