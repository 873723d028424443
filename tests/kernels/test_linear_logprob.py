"""The log-prob op against fp64 autograd on whole logits, for every implementation."""

from __future__ import annotations

import pytest
import torch

from megatron_lwz.config.sections import KernelsSection
from megatron_lwz.errors import ConfigError
from megatron_lwz.kernels import dispatch, settings
from megatron_lwz.kernels.linear_logprob import cross_check, linear_logprob, linear_loss
from megatron_lwz.types import IGNORED_LABEL
from tests.kernels.logprob_oracle import oracle, problem, relative, weighted

BACKENDS = dispatch.usable()
IN_TILES = [name for name in BACKENDS if name != "reference"]


@pytest.fixture(autouse=True)
def _restore_settings():
    with settings.using():
        yield


def use(backend: str, workspace_bytes: int = 2**20, cache_bytes: int = 0) -> None:
    settings.put(settings.Settings(backend, workspace_bytes, cache_bytes))


def run(x, w, labels, upstream, *, dtype=torch.float32, **options):
    x, w = x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()
    outputs = torch.stack(linear_logprob(x, w, labels, **options))
    (outputs * upstream.to(outputs.dtype)).sum().backward()
    return outputs.detach(), x.grad, w.grad


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


@pytest.mark.parametrize(
    ("workspace", "sizes"),
    [
        (1, {"rows": 9, "vocab": 203, "padded": 208}),  # a tile for each element: seconds for ten thousands of them
        (2 * 1024 * 4 * 7, {"vocab": 1003}),
        (2**30, {"vocab": 1003}),
    ],
    ids=["least", "some", "all"],
)
def test_result_does_not_depend_on_the_workspace(workspace, sizes):
    case = problem(**sizes)
    expected = oracle(*case, vocab=sizes["vocab"], temperature=0.8)
    use("torch", workspace)
    found = run(*case, temperature=0.8, vocab_size=sizes["vocab"])
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) <= 1e-5


def test_torch_gradients_are_exact_in_fp64():
    use("torch", 1)
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
    use("torch", 2**16)
    first, second = (run(*case, temperature=0.8, vocab_size=1003) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def run_loss(x, w, labels, upstream, *, dtype=torch.float32, factor=1.0, **options):
    x, w = x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()
    loss, *outputs = linear_loss(x, w, labels, weighted(upstream), **options)
    (loss * factor).backward()
    return loss.detach(), torch.stack(outputs), x.grad, w.grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workspace", [1, 1024 * 4 * 7, 2**30])
def test_loss_differentiated_in_the_forward_pass_equals_autograd(backend, workspace):
    case = problem()
    expected = oracle(*case, vocab=1003, temperature=0.8)
    use(backend, workspace)
    loss, outputs, grad_hidden, grad_weight = run_loss(*case, temperature=0.8, vocab_size=1003)
    assert (outputs.double() - expected[0]).abs().max() <= 1e-5
    assert (loss - (expected[0] * case[3]).sum()).abs() <= 1e-4
    assert relative(grad_hidden, expected[1]) <= 1e-5
    assert relative(grad_weight, expected[2]) <= 1e-5
    assert (grad_weight[1003:] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_differentiated_in_the_forward_pass_may_be_scaled(backend):
    case = problem()
    use(backend)
    plain, scaled = (run_loss(*case, factor=factor, vocab_size=1003) for factor in (1.0, 2.5))
    for a, b in zip(plain[2:], scaled[2:], strict=True):
        torch.testing.assert_close(a * 2.5, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_without_any_label(backend):
    x, w, labels, upstream = problem()
    use(backend)
    loss, outputs, grad_hidden, grad_weight = run_loss(
        x, w, torch.full_like(labels, IGNORED_LABEL), upstream, vocab_size=1003
    )
    assert loss == 0 and all((part == 0).all() for part in (outputs, grad_hidden, grad_weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("cache", [1024 * 4 * 7, 2**24], ids=["some", "all"])
def test_cached_logits_give_the_same_gradients(dtype, cache):
    x, w, labels, upstream = problem(scale=0.3)
    if dtype == torch.bfloat16:
        x, w = x.bfloat16().double(), w.bfloat16().double()
    expected = oracle(x, w, labels, upstream, vocab=1003, temperature=1.0)
    use("torch", 1024 * 4 * 7, cache)
    found = run(x, w, labels, upstream, dtype=dtype, vocab_size=1003)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-3
    assert relative(found[1], expected[1]) <= tolerance
    assert relative(found[2], expected[2]) <= tolerance


@pytest.mark.parametrize("backend", IN_TILES)
@pytest.mark.parametrize("cache", [0, 2**24], ids=["recomputed", "cached"])
def test_rows_without_upstream_gradient_get_none(backend, cache):
    x, w, labels, upstream = problem()
    upstream[:, : len(labels) // 2] = 0
    expected = oracle(x, w, labels, upstream, vocab=1003, temperature=1.0)
    use(backend, 2**16, cache)
    found = run(x, w, labels, upstream, vocab_size=1003)
    assert (found[1][: len(labels) // 2] == 0).all()
    assert relative(found[1], expected[1]) <= 1e-5 and relative(found[2], expected[2]) <= 1e-5


@pytest.mark.parametrize("operator", ["separable", "in_forward"])
@pytest.mark.parametrize("tied", [False, True])
def test_gradient_goes_straight_into_main_grad(operator, tied):
    """As Megatron's parameters ask for it; the tensor that autograd carries is zero where the embedding adds to it."""
    x, w, labels, upstream = problem()
    expected = oracle(x, w, labels, upstream, vocab=1003, temperature=1.0)
    use("torch", 1024 * 4 * 7)
    weight = torch.nn.Parameter(w.float())
    weight.main_grad, weight.grad_added_to_main_grad, weight.zero_out_wgrad = torch.ones_like(weight), False, tied
    hidden = x.float().requires_grad_()
    if operator == "separable":
        outputs = torch.stack(linear_logprob(hidden, weight, labels, vocab_size=1003))
        (outputs * upstream.float()).sum().backward()
    else:
        linear_loss(hidden, weight, labels, weighted(upstream), vocab_size=1003)[0].backward()
    assert weight.grad_added_to_main_grad
    assert relative(weight.main_grad - 1, expected[2]) <= 1e-5
    assert relative(hidden.grad, expected[1]) <= 1e-5
    assert not tied or (weight.grad == 0).all()


def test_loss_in_main_grad_must_not_be_scaled_afterwards():
    x, w, labels, upstream = problem()
    use("torch")
    weight = torch.nn.Parameter(w.float())
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros_like(weight), False
    loss = linear_loss(x.float().requires_grad_(), weight, labels, weighted(upstream), vocab_size=1003)[0]
    with pytest.raises(ValueError, match="must not be scaled"):
        (2 * loss).backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_cross_check_sees_how_far_the_implementation_is_from_the_reference(backend):
    x, w, labels, upstream = problem()
    use(backend, 1024 * 4 * 7)
    with settings.using(cross_check_interval=2), cross_check.watch(4) as found:
        run(x, w, labels, upstream, vocab_size=1003)
        run_loss(x, w, labels, upstream, vocab_size=1003)
    assert found.largest() <= 1e-5
    assert (found.largest() > 0) == (backend != "reference")


def test_cross_check_runs_at_its_interval_only():
    with settings.using(cross_check_interval=2), cross_check.watch(3) as found:
        assert found is None
    with cross_check.watch(4) as found:
        assert found is None


def test_cross_check_notices_a_wrong_implementation(monkeypatch):
    from megatron_lwz.kernels.linear_logprob import plain

    def wrong(self, z, labels, scale, running):
        right(self, z, labels, scale, running)
        running[3] += 0.5

    right = plain.TorchEpilogue.statistics
    monkeypatch.setattr(plain.TorchEpilogue, "statistics", wrong)
    x, w, labels, upstream = problem()
    use("torch", 2**30)
    with settings.using(cross_check_interval=2), cross_check.watch(4) as found:
        run(x, w, labels, upstream, vocab_size=1003)
    assert found.largest() == pytest.approx(0.5, abs=1e-4)


def test_backend_is_resolved_once_and_refused_when_unknown(caplog):
    with caplog.at_level("INFO"):
        chosen = dispatch.set_backend(KernelsSection(workspace_mib=3))
    assert chosen in ("cpp", "torch") and settings.settings().workspace_bytes == 3 * 2**20
    assert f"kernels: {chosen}" in caplog.text
    with pytest.raises(ConfigError, match=r"kernels\.backend"):
        dispatch.select("fastest")
    with pytest.raises(ConfigError, match=r"kernels\.backend.*cannot run here"):
        dispatch.select("cuda")
