"""Two tensors of one weight: equal in the less precise of their types, or the largest difference with its place."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_lwz.models.hf.compare import compare_tensor

WEIGHT = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
TYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("theirs", TYPES)
@pytest.mark.parametrize("ours", TYPES)
def test_the_same_values_in_any_two_types_are_equal(ours: torch.dtype, theirs: torch.dtype) -> None:
    if {ours, theirs} == {torch.float16, torch.bfloat16}:  # the folder is the original: it was rounded once
        assert compare_tensor("w", WEIGHT.half().bfloat16(), WEIGHT.half()) is None
    else:
        assert compare_tensor("w", WEIGHT.to(ours), WEIGHT.to(theirs)) is None


@pytest.mark.parametrize("theirs", TYPES)
@pytest.mark.parametrize("ours", TYPES)
def test_one_value_changed_by_one_percent_is_found(ours: torch.dtype, theirs: torch.dtype) -> None:
    changed = WEIGHT.bfloat16().float()
    changed[4, 3] *= 1.01
    found = compare_tensor("w", changed.to(ours), WEIGHT.bfloat16().to(theirs))
    assert found is not None and (found.name, found.differing, found.values) == ("w", 1, 48)
    assert found.place == (4, 3) and found.theirs == WEIGHT.bfloat16()[4, 3].item()
    assert found.ours == pytest.approx(found.theirs * 1.01, rel=0.004)
    assert str(found).startswith("1 of the 48 values of w differ, most at [4, 3]: ")


def test_the_largest_of_several_differences_is_named() -> None:
    changed = WEIGHT.clone()
    changed[0, 0] += 0.1
    changed[5, 7] -= 0.5
    found = compare_tensor("w", changed, WEIGHT)
    assert found is not None and found.differing == 2 and found.place == (5, 7)
    assert found.size == pytest.approx(0.5)


def test_swapped_heads_are_found() -> None:
    swapped = WEIGHT.unflatten(0, (3, 2))[[1, 0, 2]].flatten(0, 1)
    found = compare_tensor("w", swapped, WEIGHT)
    assert found is not None and found.differing == 32


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_differs_most_of_all(broken: float) -> None:
    changed = WEIGHT.clone()
    changed[0, 0], changed[2, 1] = 100.0, broken
    found = compare_tensor("w", changed, WEIGHT)
    assert found is not None and found.place == (2, 1) and found.size == math.inf
    assert compare_tensor("w", changed, changed) is not None or broken == math.inf
