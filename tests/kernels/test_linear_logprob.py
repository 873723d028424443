"""The log-prob op against fp64 autograd on whole logits, for every implementation."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.kernels import dispatch
from megatron_lwz.kernels.linear_logprob import linear_logprob
from megatron_lwz.types import IGNORED_LABEL

BACKENDS = dispatch.BACKENDS


@pytest.fixture(autouse=True)
def _restore_backend():
    before = dispatch._settings
    yield
    dispatch._settings = before


def use(backend: str, workspace_bytes: int = 2**20) -> None:
    dispatch._settings = dispatch.Settings(backend, workspace_bytes)


def problem(rows=37, hidden=24, vocab=1003, padded=1024, seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, hidden, generator=generator, dtype=torch.float64) * scale
    w = torch.randn(padded, hidden, generator=generator, dtype=torch.float64)
    if shift:  # one constant feature moves every logit
        x[:, 0], w[:, 0] = 1.0, shift
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[::5] = IGNORED_LABEL
    upstream = torch.randn(3, rows, generator=generator, dtype=torch.float64)
    return x, w, labels, upstream


def oracle(x, w, labels, upstream, *, vocab, temperature):
    """log_softmax on whole fp64 logits."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    kept = labels != IGNORED_LABEL
    z = x @ w[:vocab].t() / temperature
    logp = z.log_softmax(-1)
    outputs = (
        torch.stack(
            [
                logp.gather(1, labels.clamp(min=0)[:, None])[:, 0],
                -(logp.exp() * logp).sum(-1),
                z.logsumexp(-1),
            ]
        )
        * kept
    )
    (outputs * upstream).sum().backward()
    return outputs.detach(), x.grad, w.grad


def run(x, w, labels, upstream, *, dtype=torch.float32, **options):
    x, w = x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()
    outputs = torch.stack(linear_logprob(x, w, labels, **options))
    (outputs * upstream.to(outputs.dtype)).sum().backward()
    return outputs.detach(), x.grad, w.grad


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("shift", [0.0, -40.0], ids=["", "all_negative"])
def test_matches_fp64_autograd(backend, temperature, shift):
    case = problem(shift=shift)
    expected = oracle(*case, vocab=1003, temperature=temperature)
    use(backend)
    found = run(*case, temperature=temperature, vocab_size=1003)
    tolerance = 1e-5 if not shift else 5e-5  # fp32 spacing at 60 is 4e-6
    assert (found[0].double() - expected[0]).abs().max() <= tolerance
    assert relative(found[1], expected[1]) <= tolerance
    assert relative(found[2], expected[2]) <= tolerance
    assert (found[2][1003:] == 0).all(), "padded vocabulary rows must get exactly zero gradient"


@pytest.mark.parametrize("workspace", [1, 2 * 1024 * 4 * 7, 2**30])
def test_result_does_not_depend_on_the_workspace(workspace):
    case = problem()
    expected = oracle(*case, vocab=1003, temperature=0.8)
    use("chunked", workspace)
    found = run(*case, temperature=0.8, vocab_size=1003)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) <= 1e-5


def test_chunked_gradients_are_exact_in_fp64():
    use("chunked", 1)
    x, w, labels, _ = problem(rows=5, hidden=4, vocab=11, padded=12)
    x, w = x.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: linear_logprob(a, b, labels, temperature=0.9, vocab_size=11), (x, w), atol=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_inputs_accumulate_in_fp32(backend):
    x, w, labels, upstream = problem(scale=0.3)
    x, w = x.bfloat16().double(), w.bfloat16().double()
    expected = oracle(x, w, labels, upstream, vocab=1003, temperature=1.0)
    use(backend)
    found = run(x, w, labels, upstream, dtype=torch.bfloat16, vocab_size=1003)
    assert found[0].dtype == torch.float32 and found[1].dtype == torch.bfloat16
    assert (found[0].double() - expected[0]).abs().max() <= 1e-5
    assert relative(found[1], expected[1]) <= 3e-3
    assert relative(found[2], expected[2]) <= 3e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_rows_are_zero_and_get_no_gradient(backend):
    case = problem()
    use(backend)
    outputs, grad_hidden, _ = run(*case, vocab_size=1003)
    ignored = case[2] == IGNORED_LABEL
    assert (outputs[:, ignored] == 0).all() and (grad_hidden[ignored] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_labels_at_all(backend):
    x, w, labels, upstream = problem()
    use(backend)
    outputs, grad_hidden, grad_weight = run(x, w, torch.full_like(labels, IGNORED_LABEL), upstream, vocab_size=1003)
    assert (outputs == 0).all() and (grad_hidden == 0).all() and (grad_weight == 0).all()


def test_run_to_run_bitwise():
    case = problem(rows=64)
    use("chunked", 2**16)
    first, second = (run(*case, temperature=0.8, vocab_size=1003) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_backend_is_resolved_once_and_refused_when_unknown(caplog):
    from megatron_lwz.errors import ConfigError

    with caplog.at_level("INFO"):
        assert dispatch.set_backend("auto", workspace_mib=3) == "chunked"
    assert dispatch.settings().workspace_bytes == 3 * 2**20 and "chunked" in caplog.text
    with pytest.raises(ConfigError, match=r"kernels\.backend"):
        dispatch.set_backend("triton")
