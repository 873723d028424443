"""Cached keys and values stay with their sequence while rows come, go and move; prompts share prefixes."""

from __future__ import annotations

import random

import torch

from megatron_lwz.models import decoding_cache as cache
from megatron_lwz.models.decoding_cache import CachedSequence, CacheShape, PrefixCache, RowCache

SHAPE = CacheShape(layers=2, groups=1, head_dim=2, dtype=torch.float32, device=torch.device("cpu"))


def test_rows_keep_their_contents_through_adds_removes_and_growth(monkeypatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(cache, "SMALLEST_CAPACITY", 4)
    rows, random_ = RowCache(SHAPE), random.Random(0)
    wanted: dict[CachedSequence, torch.Tensor] = {}
    for _ in range(600):
        if len(wanted) < 6 and random_.random() < 0.3:
            sequence = CachedSequence((1,), length=random_.randint(1, 9))
            wanted[sequence] = torch.randn(2, 1, 2, sequence.length, 2)
            rows.add(sequence, wanted[sequence])
        elif wanted and random_.random() < 0.15:
            sequence = random_.choice(list(wanted))
            del wanted[sequence]
            rows.remove(sequence)
        rows.move_grown()
        for bucket in rows.buckets():
            for row, sequence in enumerate(bucket.sequences):
                fresh = torch.randn(2, 1, 2, 1, 2)
                bucket.store[:, row, :, :, sequence.length] = fresh[..., 0, :]
                wanted[sequence] = torch.cat([wanted[sequence], fresh], 3)
                sequence.length += 1
                assert torch.equal(bucket.store[:, row, :, :, : sequence.length], wanted[sequence])
                assert bucket.capacity < 2 * max(4, sequence.length)
        assert sum(len(bucket.sequences) for bucket in rows.buckets()) == len(wanted)


def test_a_new_prompt_starts_from_the_longest_finished_prefix() -> None:
    torch.manual_seed(0)
    prompts = PrefixCache(SHAPE, max_tokens=1000)
    first = prompts.get(tuple(range(50)))
    first.cached.normal_()
    assert prompts.get(tuple(range(40))).done == 0, "the donor is not computed yet"
    first.done = 50
    shared = prompts.get((*range(45), 7, 7))
    assert shared.done == 45
    assert torch.equal(shared.cached[..., :45, :], first.cached[..., :45, :])
    assert prompts.get(tuple(range(30))).done == 29, "the last token's logits are always computed"
    assert prompts.get((*range(10), 99)).done == 0, "too short to be worth a copy"
    assert prompts.get(tuple(range(50))) is first
    prompts.clear()
    assert prompts.get(tuple(range(50))) is not first


def test_old_prompts_are_dropped_first() -> None:
    prompts = PrefixCache(SHAPE, max_tokens=100)
    kept, dropped = prompts.get((1,) * 40), prompts.get((2,) * 40)
    prompts.get((1,) * 40)
    prompts.get((3,) * 40)
    assert prompts.get((1,) * 40) is kept
    assert prompts.get((2,) * 40) is not dropped
