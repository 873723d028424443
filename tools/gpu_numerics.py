"""The part `numerics` of `make gpu-check`: every kernel and a policy of two layers, against the CPU in fp32.

A rehearsal runs the Triton kernels through Triton's interpreter, which rounds bf16 more coarsely.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

REHEARSAL = "cpu" in sys.argv[1:]
if REHEARSAL:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import gpu_policy  # noqa: E402
import torch  # noqa: E402
from gpu_findings import Findings, Table, run_part  # noqa: E402
from torch import Tensor  # noqa: E402

from megatron_lwz.distributed import optional  # noqa: E402
from megatron_lwz.kernels.layers import layer_ops  # noqa: E402
from megatron_lwz.kernels.linear_logprob import AutogradTokenLoss, implementations, linear_logprob, linear_loss  # noqa: E402
from megatron_lwz.kernels.linear_logprob.epilogue import combine  # noqa: E402
from megatron_lwz.kernels.settings import using  # noqa: E402
from megatron_lwz.models.attention import Pieces, attend_pieces, plan_pieces  # noqa: E402
from tests.support import grpo_loss_cases as grid  # noqa: E402
from tests.support import layers_cases  # noqa: E402

Row = tuple[str, str, float, float]
"""(kernel, what is compared, largest error found, bound)."""
COARSE = 2.0 if REHEARSAL else 1.0
LOGPROB, FP32, BF16 = 2e-5, 1e-5, 3e-3 * COARSE
"""Bounds between two computations in fp32: of a log-prob in nats; of a gradient, relative, from fp32 and bf16 inputs."""
ATTENTION = 1e-2
POLICY = {"fp32": (1e-3, 1e-3), "bf16": (0.1, 0.1)}
"""By precision: bounds of a log-prob in nats and of a weight's gradient, relative."""


def work(findings: Findings, device: str) -> None:
    """Compares kernel by kernel; what raises is a failure of that kernel only."""
    torch.backends.cuda.matmul.allow_tf32 = False
    checks: dict[str, Callable[[str], Iterator[Row]]] = {
        "log-prob op": check_op,
        "GRPO loss": check_grpo,
        "layers": check_layers,
        "attention": check_attention,
        "policy": check_policy,
    }
    for title, check in checks.items():
        rows: list[Row] = []
        try:
            for row in check(device):
                rows.append(row)
                show(findings, title, rows)
                if not row[2] <= row[3]:
                    findings.fail(f"{title}: {row[0]}, {row[1]}: {row[2]:.1e} is over {row[3]:.1e}")
        except Exception as error:
            findings.fail(f"{title}: after {len(rows)} comparisons {type(error).__name__}: {error}")


def show(findings: Findings, title: str, rows: list[Row]) -> None:
    """Adds the table of one kind of kernel."""
    cells = [
        (name, what, f"{error:.1e}", f"{bound:.0e}", "yes" if error <= bound else "NO")
        for name, what, error, bound in rows
    ]
    findings.add(Table(title, ("kernel", "compared", "largest error", "bound", "within"), cells))


def check_op(device: str) -> Iterator[Row]:
    """Log-probs, entropy and gradients of both paths by every implementation, with padded rows of the vocabulary."""
    tokens, width, vocab, padded = (40, 32, 300, 320) if device == "cpu" else (2048, 896, 18_992, 19_008)
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(tokens, width, generator=generator).to(dtype)
        weight = (torch.randn(padded, width, generator=generator) * 2 * width**-0.5).to(dtype)
        labels = torch.randint(0, vocab, (tokens,), generator=generator)
        slope = torch.randn(tokens, generator=generator)
        with using(backend="reference"):
            exact = separable(hidden.float(), weight.float(), labels, slope, vocab)
        for backend in implementations.NAMES:
            reason = "it runs on a CPU" if backend == "cpp" and device == "cuda" else implementations.available(backend)
            if reason is not None:
                print(f"{backend} left out: {reason}")
                continue
            name = f"{backend}, {str(dtype).removeprefix('torch.')}"
            x, w, chosen, g = (value.to(device) for value in (hidden, weight, labels, slope))
            with using(backend=backend, workspace_bytes=2**22):
                for path in (separable, in_forward):
                    found, again = path(x, w, chosen, g, vocab), path(x, w, chosen, g, vocab)
                    yield from op_rows(f"{name}, {path.__name__}", found, again, exact, dtype, vocab)


def op_rows(
    name: str, found: list[Tensor], again: list[Tensor], exact: list[Tensor], dtype: torch.dtype, vocab: int
) -> Iterator[Row]:
    """Yields the comparisons of one path: [log-prob, entropy, dX, dW] twice and as they should be."""
    yield name, "log-prob and entropy", max(largest(a, b) for a, b in zip(found[:2], exact[:2], strict=True)), LOGPROB
    bound = FP32 if dtype == torch.float32 else BF16
    yield name, "dX and dW, relative", max(relative(a, b) for a, b in zip(found[2:], exact[2:], strict=True)), bound
    yield name, "a second run, any bit", max(largest(a, b) for a, b in zip(found, again, strict=True)), 0.0
    yield name, "dW of padded rows", float(found[3][vocab:].abs().max()), 0.0


def separable(hidden: Tensor, weight: Tensor, labels: Tensor, slope: Tensor, vocab: int) -> list[Tensor]:
    """Returns log-prob, entropy, dX and dW by `linear_logprob`."""
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprob, entropy, _ = linear_logprob(x, w, labels, vocab_size=vocab)
    gradients = torch.autograd.grad((logprob * slope).sum() + 0.1 * entropy.sum(), (x, w))
    return [logprob.detach(), entropy.detach(), *gradients]


def in_forward(hidden: Tensor, weight: Tensor, labels: Tensor, slope: Tensor, vocab: int) -> list[Tensor]:
    """Returns the same by `linear_loss`."""
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = AutogradTokenLoss(
        lambda logprob, entropy, lse, rows: (logprob * slope[rows]).sum() + 0.1 * entropy.sum(), len(labels)
    )
    total, logprob, entropy, _ = linear_loss(x, w, labels, loss, vocab_size=vocab)
    return [logprob.detach(), entropy.detach(), *torch.autograd.grad(total, (x, w))]


def check_grpo(device: str) -> Iterator[Row]:
    """The fused GRPO loss by both entries, against `algorithms/grpo.py` on the CPU, over a grid of options."""
    tokens = 64 if device == "cpu" else 16_384
    for number, case in enumerate(grid.cases(4 if device == "cpu" else 16, cispo=2)):
        given, host = (grid.problem(case, tokens, seed=number, device=where) for where in (device, "cpu"))
        logprob, entropy, _, _ = combine(given.shards)
        found = grid.from_logprobs(logprob, entropy, given, case.section)
        exact = grid.expected(logprob.cpu(), entropy.cpu(), host, case.section)
        name = f"{case.section.objective}, {case.section.ratio} ratio, case {number}"
        yield name, "gradient of every token", max(scaled(found.g, exact.g), scaled(found.h, exact.h)), FP32
        if case.token_level:
            fused, logprob, entropy = grid.from_statistics(given, case.section, chunk=max(7, tokens // 5))
            exact = grid.expected(logprob.cpu(), entropy.cpu(), host, case.section)
            yield name, "the same from statistics", max(scaled(fused.g, exact.g), scaled(fused.h, exact.h)), FP32


def check_layers(device: str) -> Iterator[Row]:
    """RMSNorm, rotary embedding and SwiGLU in Triton, outputs and gradients, against their formulas in fp64."""
    for dtype, bound in ((torch.float32, FP32), (torch.bfloat16, BF16)):
        for name, case in layers_cases.cases().items():
            what = f"outputs and gradients, {str(dtype).removeprefix('torch.')}"
            yield name, what, max(case.errors(layer_ops("triton"), dtype, device)), bound


def check_attention(device: str) -> Iterator[Row]:
    """The varlen kernels on packed documents, outputs and gradients, against SDPA in fp32 on the CPU."""
    starts = torch.tensor([0, 64, 1000, 1320, 1328] if device == "cuda" else [0, 7, 20], dtype=torch.int32)
    for queries, groups, dim in ((14, 2, 64), (28, 4, 128)) if device == "cuda" else ((4, 2, 8),):
        generator = torch.Generator().manual_seed(1)
        tokens = int(starts[-1])
        drawn = [torch.randn(tokens, heads, dim, generator=generator).bfloat16() for heads in (queries, groups, groups)]
        slope = torch.randn(tokens, queries, dim, generator=generator).bfloat16()
        exact = attended([value.float() for value in drawn], slope.float(), plan_pieces(starts), flash=False)
        for flash in (False, True) if optional.unusable("flash_attn") is None else (False,):
            moved = [value.to(device) for value in drawn]
            found = attended(moved, slope.to(device), plan_pieces(starts.to(device)), flash=flash)
            name = f"{'flash-attn' if flash else 'torch'}, {queries} + {groups} heads of {dim}"
            worst = max(relative(a, b) for a, b in zip(found, exact, strict=True))
            yield name, "output and gradients", worst, ATTENTION


def attended(inputs: list[Tensor], slope: Tensor, pieces: Pieces, *, flash: bool) -> list[Tensor]:
    """Returns the output, and the gradients of query, key and value for this gradient of the output."""
    query, key, value = (one.requires_grad_() for one in inputs)
    out = attend_pieces(query, key, value, pieces, flash=flash)
    return [out, *torch.autograd.grad(out, (query, key, value), slope)]


def check_policy(device: str) -> Iterator[Row]:
    """A policy of two layers with random weights: log-probs and the gradient of every weight, fp32 and bf16.

    A rehearsal compares Triton's layers with torch's.
    """
    exact = on_the_cpu() if device == "cuda" else gpu_policy.numbers("fp32", layers="torch", tiny=True)
    for precision, (logprob, gradient) in POLICY.items():
        found = gpu_policy.numbers(precision, layers="triton", tiny=device == "cpu")
        yield precision, "log-probs", largest(found.pop("logprob"), exact["logprob"]), logprob
        worst = max(found, key=lambda name: relative(found[name], exact[name]))
        yield precision, f"gradients, {worst} worst", relative(found[worst], exact[worst]), gradient


def on_the_cpu() -> dict[str, Tensor]:
    """Runs gpu_policy.py without a GPU. It needs a process of its own: the platform of a process is chosen once."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "numbers.pt"
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, gpu_policy.__file__, str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the policy on the CPU: {done.stderr[-800:]}")
        numbers: dict[str, Tensor] = torch.load(out, weights_only=True)
        return numbers


def largest(found: Tensor, exact: Tensor) -> float:
    """Returns the largest difference of two numbers; not a number counts as infinite."""
    difference = (found.detach().double().cpu() - exact.detach().double().cpu()).abs().max()
    return float(difference.nan_to_num(float("inf")))


def scaled(found: Tensor, exact: Tensor) -> float:
    """Returns the largest difference over 1 + the exact value; not a number counts as infinite."""
    ours, theirs = found.detach().double().cpu(), exact.detach().double().cpu()
    return float(((ours - theirs).abs() / (1 + theirs.abs())).max().nan_to_num(float("inf")))


def relative(found: Tensor, exact: Tensor) -> float:
    """Returns the norm of the difference over the norm of `exact`; not a number counts as infinite."""
    ours, theirs = found.detach().double().cpu(), exact.detach().double().cpu()
    return float(((ours - theirs).norm() / theirs.norm().clamp(min=1e-30)).nan_to_num(float("inf")))


if __name__ == "__main__":
    sys.exit(run_part(work, __doc__.splitlines()[0]))
