"""A range of elements and the boxes that it is cut into are the same elements."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_lwz.training.blocks import boxes


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (1, 5), (5, 1), (2, 3, 4)])
@pytest.mark.parametrize("limit", [1, 4, 9, 1000])
def test_boxes_hold_the_range_in_order(shape: tuple[int, ...], limit: int) -> None:
    elements = torch.arange(math.prod(shape)).view(shape)
    for begin in range(elements.numel() + 1):
        for end in range(begin, elements.numel() + 1):
            found = list(boxes(shape, begin, end, limit))
            views = [
                elements[tuple(slice(start, start + size) for start, size in zip(*box, strict=True))] for box in found
            ]
            assert [value for view in views for value in view.flatten().tolist()] == list(range(begin, end))
            assert all(view.shape == box[1] for view, box in zip(views, found, strict=True))
            assert all(view.numel() <= max(limit, math.prod(shape[1:])) for view in views)


def test_boxes_are_few_and_not_larger_than_the_limit() -> None:
    assert list(boxes((10, 8), 5, 70, 1000)) == [((0, 5), (1, 3)), ((1, 0), (7, 8)), ((8, 0), (1, 6))]
    assert [size for _, size in boxes((10, 8), 0, 80, 33)] == [(4, 8), (4, 8), (2, 8)]
