"""Cached keys and values stay with their sequence while rows come, go and move; prompts share prefixes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from megatron_lwz.kernels.decode_attention import COLUMNS, of_page
from megatron_lwz.models import decoding_buckets as buckets
from megatron_lwz.models.decoding_buckets import BucketRows
from megatron_lwz.models.decoding_cache import CachedSequence, CacheShape, Prefix, PrefixCache
from megatron_lwz.models.decoding_pages import PAGE, PagedRows, PagePool
from megatron_lwz.units import MIB

_MAPPINGS = Path("/proc/self/maps")
SHAPE = CacheShape(layers=2, groups=1, head_dim=2, dtype=torch.float32, device=torch.device("cpu"))


def computed(cached: torch.Tensor) -> Prefix:
    return Prefix((0,) * cached.shape[3], cached, done=cached.shape[3])


def test_rows_keep_their_contents_through_adds_removes_and_growth(monkeypatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(buckets, "SMALLEST_CAPACITY", 4)
    rows, random_ = BucketRows(SHAPE), random.Random(0)
    wanted: dict[CachedSequence, torch.Tensor] = {}
    for _ in range(600):
        if len(wanted) < 6 and random_.random() < 0.3:
            sequence = CachedSequence((1,), length=random_.randint(1, 9))
            wanted[sequence] = torch.randn(2, 1, 2, sequence.length, 2)
            rows.add(sequence, computed(wanted[sequence]))
        elif wanted and random_.random() < 0.15:
            sequence = random_.choice(list(wanted))
            del wanted[sequence]
            rows.remove(sequence)
        rows.grow()
        for bucket in rows.buckets():
            for row, sequence in enumerate(bucket.sequences):
                fresh = torch.randn(2, 1, 2, 1, 2)
                bucket.store[:, row, :, :, sequence.length] = fresh[..., 0, :]
                wanted[sequence] = torch.cat([wanted[sequence], fresh], 3)
                sequence.length += 1
                assert torch.equal(bucket.store[:, row, :, :, : sequence.length], wanted[sequence])
                assert bucket.capacity < 2 * max(4, sequence.length)
        assert sum(len(bucket.sequences) for bucket in rows.buckets()) == len(wanted)


def test_pages_keep_their_contents_and_a_group_shares_those_of_its_prompt() -> None:
    torch.manual_seed(0)
    prompt = torch.randn(2, 1, 2, 2 * PAGE + 5, 2)
    prefix, rows = computed(prompt.clone()), PagedRows(SHAPE)
    group = [CachedSequence((1,), seed=seed, length=prompt.shape[3]) for seed in range(4)]
    for sequence in group:
        rows.add(sequence, prefix)
    assert rows.count == 2 + len(group), "two full pages for all, and one of its own for each"
    wanted = dict.fromkeys(group, prompt)
    for _ in range(PAGE):
        rows.grow()
        for sequence in group:
            fresh = torch.randn(2, 1, 2, 1, 2)
            pages = rows._pages[sequence]
            page, place = pages[sequence.length // PAGE], sequence.length % PAGE
            column = place // COLUMNS * 2 * COLUMNS + place % COLUMNS
            page[..., 0, column : column + 2 * COLUMNS : COLUMNS], page[..., 1, 2 * place : 2 * place + 2] = (
                fresh[..., 0, 0, :],
                fresh[..., 1, 0, :],
            )
            wanted[sequence] = torch.cat([wanted[sequence], fresh], 3)
            sequence.length += 1
            assert len(pages) * PAGE < sequence.length + PAGE, "no page more than needed"
    for sequence in group:
        cached = torch.cat(list(map(of_page, rows._pages[sequence])), 3)
        assert torch.equal(cached[..., : sequence.length, :], wanted[sequence])
    assert torch.equal(prefix.first(prefix.done), prompt), "what rows wrote is not in the cached prompt"
    for sequence in group[1:]:
        rows.remove(sequence)
    assert rows.count == 4
    rows.add(late := CachedSequence((1,), length=prompt.shape[3]), prefix)
    late_pages = rows._pages[late]
    assert torch.equal(torch.cat(list(map(of_page, late_pages)), 3)[..., : prompt.shape[3], :], prompt)
    cached = torch.cat(list(map(of_page, rows._pages[group[0]])), 3)
    assert torch.equal(cached[..., : group[0].length, :], wanted[group[0]]), "a page is used again, but not one in use"


def _is_mapped(address: int) -> bool:
    """Returns whether this process has memory at an address."""
    ranges = [line.split(" ", 1)[0].split("-") for line in _MAPPINGS.read_text().splitlines()]
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in ranges)


def test_pages_are_used_again_and_freed_when_no_sequence_is_left() -> None:
    pool = PagePool(SHAPE)
    pages = [pool.take() for _ in range(3)]
    assert len({page.data_ptr() for page in pages}) == 3 and pages[0].shape == (2, 1, 2, PAGE * 2)
    memory = StorageWeakRef(pages[0].untyped_storage())
    pool.give(pages[:2])
    assert pool.take().data_ptr() in {page.data_ptr() for page in pages[:2]}
    pool.give(pages[1:])
    assert not memory.expired()
    del pages
    assert not pool._free and memory.expired()


@pytest.mark.skipif(not _MAPPINGS.exists(), reason="asks Linux")
def test_freed_pages_go_back_to_the_system() -> None:
    torch.empty(24 * MIB, dtype=torch.uint8)  # from now on glibc keeps freed memory of up to this size
    pool = PagePool(SHAPE)
    page = pool.take().fill_(1)
    address = page.data_ptr()
    assert _is_mapped(address)
    pool.give([page])
    del page
    assert not _is_mapped(address)


def test_a_prompt_that_fills_its_pages_is_shared_whole() -> None:
    prefix, rows = computed(torch.randn(2, 1, 2, PAGE, 2)), PagedRows(SHAPE)
    group = [CachedSequence((1,), seed=seed, length=PAGE) for seed in range(3)]
    for sequence in group:
        rows.add(sequence, prefix)
    assert rows.count == 1
    assert rows.grow() and rows.count == 4


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
    before = first.cached.clone()
    first.in_pages()
    again = prompts.get((*range(48), 7))
    assert again.done == 48 and torch.equal(again.cached[..., :48, :], before[..., :48, :])
    prompts.clear()
    assert prompts.get(tuple(range(50))) is not first


def test_old_prompts_are_dropped_first() -> None:
    prompts = PrefixCache(SHAPE, max_tokens=100)
    kept, dropped = prompts.get((1,) * 40), prompts.get((2,) * 40)
    prompts.get((1,) * 40)
    prompts.get((3,) * 40)
    assert prompts.get((1,) * 40) is kept
    assert prompts.get((2,) * 40) is not dropped
