"""The op under tensor parallelism (gloo): equal to the whole vocabulary on one rank, bitwise equal on all ranks."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from megatron_lwz.kernels import dispatch, settings
from megatron_lwz.kernels.linear_logprob import linear_logprob, linear_loss
from megatron_lwz.types import IGNORED_LABEL
from tests.kernels.logprob_oracle import oracle, problem, relative, weighted

BACKENDS = dispatch.usable()
MODES = ("recomputed", "cached", "in_forward")
VOCAB = {"usual": 1003, "shard_without_vocabulary": 500}
"""True vocabulary; 1024 rows with padding, so the second one leaves whole shards empty."""
ROWS = 64
TEMPERATURE = 0.8


def case(vocab):
    x, w, labels, upstream = problem(rows=ROWS, vocab=vocab)
    labels[:16] = IGNORED_LABEL  # with sequence parallelism and 4 ranks, the first rank's rows have no label
    return x, w, labels, upstream


def _worker(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    results = {}
    cases = itertools.product(BACKENDS, MODES, VOCAB, (False, True), (False, True))
    for backend, mode, name, sequence_parallel, empty in cases:
        workspace = 2 * 1024 // ranks * 4 * 7  # a few rows at a time
        settings.put(settings.Settings(backend, workspace, cache_bytes=2**20 if mode == "cached" else 0))
        results[backend, mode, name, sequence_parallel, empty] = _measure(
            rank, ranks, VOCAB[name], in_forward=mode == "in_forward", sequence_parallel=sequence_parallel, empty=empty
        )
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _measure(rank, ranks, vocab, *, in_forward, sequence_parallel, empty):
    x, w, labels, upstream = case(vocab)
    if empty:
        labels = torch.full_like(labels, IGNORED_LABEL)
    shard = w.float().chunk(ranks)[rank].clone().requires_grad_()
    hidden = (x.float().chunk(ranks)[rank] if sequence_parallel else x.float()).clone().requires_grad_()
    options = {
        "temperature": TEMPERATURE,
        "vocab_start": rank * shard.shape[0],
        "vocab_size": vocab,
        "tp_group": dist.group.WORLD,
        "sequence_parallel": sequence_parallel,
    }
    if in_forward:
        loss, *outputs = linear_loss(hidden, shard, labels, weighted(upstream), **options)
    else:
        outputs = linear_logprob(hidden, shard, labels, **options)
        loss = (torch.stack(outputs) * upstream.float()).sum()
    loss.backward()
    outputs = torch.stack(outputs)
    return outputs.detach(), hidden.grad, shard.grad


@pytest.fixture(scope="module", params=[2, 4], ids=["tp2", "tp4"])
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload([__name__])  # one import for all ranks
    arguments = (request.param, str(folder))
    multiprocessing.start_processes(_worker, arguments, nprocs=request.param, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def joined(results, key):
    """Outputs of rank 0, the whole hidden gradient, the whole weight gradient."""
    parts = [result[key] for result in results]
    hidden = torch.cat([p[1] for p in parts]) if key[3] else parts[0][1]
    return parts[0][0], hidden, torch.cat([p[2] for p in parts])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", VOCAB)
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["", "sp"])
def test_log_probs_and_gradients_are_invariant_to_tensor_parallel_size(results, backend, mode, name, sequence_parallel):
    expected = oracle(*case(VOCAB[name]), vocab=VOCAB[name], temperature=TEMPERATURE)
    found = joined(results, (backend, mode, name, sequence_parallel, False))
    assert (found[0].double() - expected[0]).abs().max() <= 1e-5
    assert relative(found[1], expected[1]) <= 1e-5
    assert relative(found[2], expected[2]) <= 1e-5
    assert (found[2][VOCAB[name] :] == 0).all()


def test_ranks_are_bitwise_equal(results):
    for key in results[0]:
        for other in results[1:]:
            assert torch.equal(results[0][key][0], other[key][0]), key
            assert key[3] or torch.equal(results[0][key][1], other[key][1]), key


def test_sequence_parallel_changes_nothing(results):
    for key in results[0]:
        if key[3]:
            for a, b in zip(joined(results, key), joined(results, (*key[:3], False, key[4])), strict=True):
                torch.testing.assert_close(a, b)


def test_rows_without_labels_keep_the_ranks_in_step(results):
    for key in results[0]:
        if key[4]:
            assert all((part == 0).all() for part in joined(results, key)), key
