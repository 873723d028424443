"""The schedule (each sequence once, cap, equal counts, balance) and the tensors of a pack under context parallelism."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lwz.data.packing import build_micro_batch, plan_micro_batches, unpack
from megatron_lwz.errors import ConfigError
from megatron_lwz.types import IGNORED_LABEL, SequenceBatch


def quadratic(length: int) -> float:
    return length * (1000.0 + length)


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 500), max_size=60),
    data_size=st.integers(1, 5),
    token_cap=st.integers(512, 2000),
    multiple_of=st.integers(1, 4),
    align=st.sampled_from([1, 4, 8]),
)
def test_schedule(lengths, data_size, token_cap, multiple_of, align):
    plan = plan_micro_batches(
        lengths, data_size=data_size, token_cap=token_cap, multiple_of=multiple_of, align=align, cost=quadratic
    )
    assert len(plan) == data_size
    assert len({len(rank) for rank in plan}) == 1 and len(plan[0]) % multiple_of == 0 and plan[0]
    packs = [pack for rank in plan for pack in rank]
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    for pack in packs:
        assert sum(-(-lengths[i] // align) * align for i in pack) <= token_cap
    if len(lengths) >= len(packs):
        assert all(packs), "a pack may be empty only when sequences are fewer than packs"
    prices = [[sum(quadratic(lengths[i]) for i in pack) for pack in rank] for rank in plan]
    totals = [sum(rank) for rank in prices]
    assert max(totals) - min(totals) <= max(max(rank) for rank in prices) + 1e-6


def test_schedule_uses_no_more_micro_batches_than_needed():
    plan = plan_micro_batches([100] * 16, data_size=2, token_cap=400, cost=quadratic)
    assert [len(rank) for rank in plan] == [2, 2] and all(len(pack) == 4 for rank in plan for pack in rank)


def test_schedule_balances_by_cost_not_by_tokens():
    """One long sequence costs more than its tokens: it should stand with fewer short ones."""
    lengths = [4000, *[500] * 24]
    plan = plan_micro_batches(lengths, data_size=2, token_cap=16000, cost=lambda n: float(n * n))
    tokens = [sum(lengths[i] for pack in rank for i in pack) for rank in plan]
    costs = [sum(lengths[i] ** 2 for pack in rank for i in pack) for rank in plan]
    assert max(costs) <= 4000**2 + 500**2 and tokens[0] != tokens[1]


def test_schedule_is_deterministic():
    lengths = [(7 * i) % 97 + 1 for i in range(50)]
    first, second = (plan_micro_batches(lengths, data_size=3, token_cap=200, cost=quadratic) for _ in range(2))
    assert first == second


def test_too_long_a_sequence_is_refused():
    with pytest.raises(ConfigError, match=r"training\.tokens_per_micro_batch.*101"):
        plan_micro_batches([5, 101], data_size=1, token_cap=100, cost=quadratic)


def sequence_batch(lengths, prompts) -> SequenceBatch:
    total = sum(lengths)
    return SequenceBatch(
        tokens=torch.arange(total) + 1000,
        offsets=torch.tensor([0, *lengths]).cumsum(0),
        prompt_lengths=torch.tensor(prompts, dtype=torch.int64),
        behaviour_logprobs=-torch.arange(total).float(),
        advantages=torch.arange(len(lengths)).float() + 1,
        weights=torch.ones(len(lengths)),
    )


@settings(max_examples=60)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=6),
    context_size=st.sampled_from([1, 2, 4]),
    tensor_size=st.sampled_from([1, 2, 3]),
    sequence_parallel=st.booleans(),
    data=st.data(),
)
def test_pack_round_trip(shapes, context_size, tensor_size, sequence_parallel, data):
    """Every response token is a label exactly once over the context-parallel ranks, with its own values beside it."""
    torch.manual_seed(0)
    batch = sequence_batch([p + n for n, p in shapes], [p for _, p in shapes])
    indices = data.draw(st.lists(st.integers(0, len(shapes) - 1), unique=True))
    token_weights = torch.rand(len(batch.tokens))
    found = torch.full((len(batch.tokens),), -1.0)
    seen = torch.zeros(len(batch.tokens), dtype=torch.int64)
    for rank in range(context_size):
        m = build_micro_batch(
            batch,
            indices,
            tensor_size=tensor_size,
            context_size=context_size,
            context_rank=rank,
            sequence_parallel=sequence_parallel,
            token_weights=token_weights,
        )
        labelled = m.source >= 0
        where = m.source[labelled]
        assert len(m.tokens) * context_size == m.cu_seqlens[-1]
        assert len(m.tokens) > 0 and (not sequence_parallel or len(m.tokens) % tensor_size == 0)
        assert m.max_seqlen == (m.cu_seqlens[1:] - m.cu_seqlens[:-1]).max()
        assert torch.equal(labelled, m.labels != IGNORED_LABEL)
        assert torch.equal(m.labels[labelled], batch.tokens[where])
        assert torch.equal(m.tokens[labelled], batch.tokens[where - 1])
        assert torch.equal(m.positions[labelled], where - 1 - batch.offsets[m.sequence_ids[labelled]])
        assert torch.equal(m.weights[labelled], token_weights[where]) and (m.weights[~labelled] == 0).all()
        assert torch.equal(m.behaviour_logprobs[labelled], batch.behaviour_logprobs[where])
        assert torch.equal(m.advantages[labelled], batch.advantages[m.sequence_ids[labelled]])
        if context_size > 1:
            assert ((m.cu_seqlens[1:] - m.cu_seqlens[:-1]) % (2 * context_size) == 0).all()
        seen.index_add_(0, where, torch.ones_like(where))
        unpack(m.labels.float(), m, found)
    response = torch.zeros(len(batch.tokens), dtype=torch.bool)
    for i in indices:
        response[batch.offsets[i] + batch.prompt_lengths[i] : batch.offsets[i + 1]] = True
    assert torch.equal(seen, response.long())
    assert torch.equal(found[response], batch.tokens[response].float()) and (found[~response] == -1).all()


def test_segments_keep_documents_apart():
    batch = sequence_batch([5, 4], [2, 1])
    m = build_micro_batch(
        batch,
        [0, 1],
        tensor_size=4,
        context_size=1,
        context_rank=0,
        sequence_parallel=True,
        token_weights=torch.ones(9),
    )
    assert m.cu_seqlens.tolist() == [0, 4, 7, 8] and m.cu_seqlens.dtype == torch.int32
    assert m.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert m.tokens.tolist() == [1000, 1001, 1002, 1003, 1005, 1006, 1007, 0]
    assert m.labels.tolist() == [IGNORED_LABEL, 1002, 1003, 1004, 1006, 1007, 1008, IGNORED_LABEL]
    assert m.sequence_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, -1]


def test_tokens_of_weight_zero_are_no_labels():
    """They would cost the output layer its products and change nothing."""
    weights = torch.ones(9)
    weights[3], weights[5:] = 0, 0
    m = build_micro_batch(
        sequence_batch([5, 4], [2, 1]),
        [0, 1],
        tensor_size=1,
        context_size=1,
        context_rank=0,
        sequence_parallel=False,
        token_weights=weights,
    )
    assert m.labels.tolist() == [IGNORED_LABEL, 1002, IGNORED_LABEL, 1004, *[IGNORED_LABEL] * 3]
    assert m.source.tolist() == [-1, 2, -1, 4, -1, -1, -1]
