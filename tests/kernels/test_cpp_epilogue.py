"""The C++ epilogue against fp64, on both of its instruction sets; and that the package's build makes it."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from megatron_lwz.errors import ConfigError
from megatron_lwz.kernels.linear_logprob import cpp
from megatron_lwz.kernels.linear_logprob.epilogue import RowGradients, combine, empty_statistics
from megatron_lwz.kernels.linear_logprob.plain import TorchEpilogue

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = ("avx512", "avx2", "portable")
BF16 = 2**-8
"""Largest relative error of a number rounded to bf16."""

built = pytest.mark.skipif(cpp.available() is not None, reason=cpp.available() or "")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture(params=INSTRUCTIONS)
def epilogue(request):
    before = cpp._cpu.instructions()
    try:
        cpp._cpu.use_instructions(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield cpp.CppEpilogue()
    cpp._cpu.use_instructions(before)


def tile(rows=23, columns=4999, *, dtype=torch.float32, spread=3.0, shift=0.0, seed=0):
    """(z inside a wider buffer, labels of which some lie outside)."""
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.randn(rows, columns + 11, generator=generator) * spread + shift
    labels = torch.randint(0, columns, (rows,), generator=generator)
    labels[1], labels[2], labels[3] = -7, columns, columns - 1
    return buffer.to(dtype)[:, 3 : columns + 3], labels


def merged(epilogue, z, labels, scale, cuts=()):
    """Statistics over the tiles between `cuts`, from left to right."""
    running = empty_statistics(len(z), dtype=torch.float32, device="cpu")
    edges = [0, *cuts, z.shape[1]]
    for begin, end in itertools.pairwise(edges):
        epilogue.statistics(z[:, begin:end], labels - begin, scale, running)
    return running


def oracle(z, labels, scale, upstream=None):
    """(log-prob, entropy, lse, E[y]) in fp64, and the gradient of z for `upstream` [3, n]. A label outside has logit 0."""
    z = z.double().clone().requires_grad_()
    y = z * scale
    lse = y.logsumexp(1)
    p = (y - lse[:, None]).exp()
    own = (labels >= 0) & (labels < z.shape[1])
    chosen = y.gather(1, labels.clamp(0, z.shape[1] - 1)[:, None])[:, 0].where(own, lse.new_zeros(()))
    mean = (p * y).sum(1)
    outputs = torch.stack([chosen - lse, lse - mean, lse])
    if upstream is None:
        return *outputs.detach(), mean.detach()
    (outputs * upstream).sum().backward()
    return z.grad


def row_gradients(z, labels, scale, *, entropy=True, lse=True, seed=1):
    """What `gradient` is given, from fp64 statistics, and the same as upstream [3, n] for the oracle."""
    upstream = torch.randn(3, len(z), generator=torch.Generator().manual_seed(seed))
    upstream *= torch.tensor([1.0, entropy, lse])[:, None]
    _, _, total, mean = oracle(z, labels, scale)
    g, h, k = upstream
    rows = RowGradients(total.float(), mean.float(), g, h if entropy else None, k if lse else None)
    return rows, upstream.double()


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1 / 0.7])
@pytest.mark.parametrize("cuts", [(), (1, 2048, 2051, 3333)], ids=["one", "five"])
def test_statistics_match_fp64(epilogue, dtype, scale, cuts):
    z, labels = tile(dtype=dtype)
    found = combine(merged(epilogue, z, labels, scale, cuts)[None])
    for value, expected in zip(found, oracle(z, labels, scale), strict=True):
        assert (value.double() - expected).abs().max() <= 5e-6


@built
@pytest.mark.parametrize("columns", [1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 1023, 1025])
def test_any_width(epilogue, columns):
    z, labels = tile(5, columns)
    labels.clamp_(max=columns)
    found = combine(merged(epilogue, z, labels, 1.0)[None])
    for value, expected in zip(found, oracle(z, labels, 1.0), strict=True):
        assert (value.double() - expected).abs().max() <= 2e-6
    rows, upstream = row_gradients(z, labels, 1.0)
    expected = oracle(z, labels, 1.0, upstream)
    around = z.as_strided((5, columns + 11), (columns + 11, 1), 0).clone()
    gradient = epilogue.gradient(z, labels, 1.0, rows, torch.float32)
    assert (gradient.double() - expected).abs().max() <= 2e-6
    assert gradient.data_ptr() == z.data_ptr()
    whole = z.as_strided(around.shape, around.stride(), 0)
    assert torch.equal(whole[:, :3], around[:, :3]) and torch.equal(whole[:, columns + 3 :], around[:, columns + 3 :])


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("result", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("lse", [False, True])
def test_gradient_matches_fp64(epilogue, dtype, result, entropy, lse):
    z, labels = tile(dtype=dtype)
    rows, upstream = row_gradients(z, labels, 1 / 0.7, entropy=entropy, lse=lse)
    expected = oracle(z, labels, 1 / 0.7, upstream)
    exact = epilogue.gradient(z.clone(), labels, 1 / 0.7, rows, torch.float32)
    assert relative(exact, expected) <= 2e-6
    found = epilogue.gradient(z, labels, 1 / 0.7, rows, result)
    assert found.dtype == result and found.shape == z.shape and found.stride(1) == 1
    assert torch.equal(found, exact.to(result)), "rounded to nearest, ties to even, like torch"


@built
@pytest.mark.parametrize("vectors", ["logprob", "entropy", "lse_gradient"])
def test_rows_without_gradient_are_exactly_zero_whatever_their_logits(epilogue, vectors):
    z, labels = tile()
    rows, _ = row_gradients(z, labels, 1.0)
    for name in ("logprob", "entropy", "lse_gradient"):
        getattr(rows, name)[::3] = 0.0
    getattr(rows, vectors)[3] = 0.5  # one gradient alone is enough
    z[0] = math.nan
    z[6] = math.inf
    for result in (torch.float32, torch.bfloat16):
        gradient = epilogue.gradient(z.clone(), labels, 1.0, rows, result)
        assert not gradient[0::3][[0, 2, 3]].any()
        assert gradient[3].any() and gradient[1].any()


@built
@pytest.mark.parametrize("shift", [-1e4, 1e4, -60.0], ids=["low", "high", "negative"])
def test_large_logits(epilogue, shift):
    z, labels = tile(shift=shift, spread=100.0 if abs(shift) > 1e3 else 3.0)
    running = merged(epilogue, z, labels, 1.0, (1500, 1507)).double()
    p, y = z.double().softmax(1), z.double()
    assert torch.equal(running[0], y.amax(1))
    spacing = 2e-6  # the difference to the greatest logit is exact, so s and w are as good as for small logits
    expected = y.logsumexp(1) - y.amax(1)
    assert (running[1].log() - expected).abs().max() <= spacing
    assert (running[2] / running[1] - (p * (y - y.amax(1, keepdim=True))).sum(1)).abs().max() <= 2 * spacing
    rows, upstream = row_gradients(z, labels, 1.0)
    gradient = epilogue.gradient(z.clone(), labels, 1.0, rows, torch.float32)
    coarse = 2e-6 if abs(shift) < 1e3 else 2e-3  # lse itself is given in fp32, 1e-3 apart at 1e4
    assert relative(gradient, oracle(z, labels, 1.0, upstream)) <= coarse


@built
def test_masked_logits_take_no_part(epilogue):
    z, labels = tile()
    z[:, 1000:3000] = -math.inf
    labels.clamp_(max=999)
    kept = torch.cat([z[:, :1000], z[:, 3000:]], 1)
    found = combine(merged(epilogue, z, labels, 1.0, (1500,))[None])
    expected = oracle(kept, labels, 1.0)
    for value, reference in zip(found, expected, strict=True):
        assert (value.double() - reference).abs().max() <= 5e-6
    rows, _ = row_gradients(kept, labels, 1.0)
    gradient = epilogue.gradient(z, labels, 1.0, rows, torch.float32)
    assert not gradient[:, 1000:3000].any() and gradient.isfinite().all()


@built
def test_a_shard_of_nothing_but_masked_logits_leaves_the_statistics_empty(epilogue):
    z, _ = tile()
    z[:] = -math.inf
    labels = torch.full((len(z),), -1)
    running = merged(epilogue, z, labels, 1.0)
    assert torch.equal(running, empty_statistics(len(z), dtype=torch.float32, device="cpu"))


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_not_hidden(epilogue, dtype):
    z, labels = tile(dtype=dtype)
    rows, _ = row_gradients(z, labels, 1.0)
    for row, column in ((4, 0), (5, 4998), (6, 1030)):
        z[row, column] = math.nan
    patterns = torch.tensor([0x7FC00001, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    if dtype == torch.float32:
        z[7, :3] = patterns
    found = merged(epilogue, z, labels, 1.0)
    bad = [4, 5, 6] + [7] * (dtype == torch.float32)
    assert found[1, bad].isnan().all() and found[2, bad].isnan().all()
    good = [i for i in range(len(z)) if i not in bad]
    assert found[:, good].isfinite().all()
    spoiled = z.isnan()
    for result in (torch.float32, torch.bfloat16):
        assert torch.equal(epilogue.gradient(z.clone(), labels, 1.0, rows, result).isnan(), spoiled)


@built
def test_exponential_is_within_its_error(epilogue):
    z = torch.linspace(-86.9, 0, 2**20).reshape(64, -1)
    ones = torch.ones(64)
    rows = RowGradients(ones * 0, ones * 0, -ones, None, None)
    outside = torch.full((64,), -1)
    found = epilogue.gradient(z.clone(), outside, 1.0, rows, torch.float32).double()
    assert ((found - z.double().exp()) / z.double().exp()).abs().max() < 2e-7


@built
def test_the_widest_instruction_set_of_the_processor_is_used():
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    needed = {"avx512": {"avx512f", "avx2", "fma"}, "avx2": {"avx2", "fma"}, "portable": set()}
    assert cpp._cpu.instructions() == next(name for name in INSTRUCTIONS if needed[name] <= set(flags))


@built
def test_all_instruction_sets_agree():
    best = cpp._cpu.instructions()
    if best == "portable":
        pytest.skip("one instruction set only")
    z, labels = tile()
    rows, _ = row_gradients(z, labels, 0.9)
    results = []
    for name in INSTRUCTIONS[INSTRUCTIONS.index(best) :]:
        cpp._cpu.use_instructions(name)
        epilogue = cpp.CppEpilogue()
        running = merged(epilogue, z, labels, 0.9, (777,))
        results.append((running, epilogue.gradient(z.clone(), labels, 0.9, rows, torch.float32)))
    cpp._cpu.use_instructions(best)
    for a, da in results[:-1]:
        torch.testing.assert_close(a, results[-1][0], rtol=2e-6, atol=0)
        assert relative(da, results[-1][1].double()) <= 1e-6


@built
def test_bitwise_equal_for_any_number_of_threads_and_from_run_to_run(epilogue):
    z, labels = tile(67, 9001)  # large enough to be shared out
    rows, _ = row_gradients(z, labels, 1.0)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            running = merged(epilogue, z, labels, 1.0, (4500,))
            gradients = [epilogue.gradient(z.clone(), labels, 1.0, rows, d) for d in (torch.float32, torch.bfloat16)]
            runs.append((running, *gradients))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@built
def test_threads_are_those_of_torch():
    """A second OpenMP runtime in the process would compete with the first one for the processor."""
    runtime = Path(cpp._cpu.thread_runtime())
    if "GOMP" not in torch.__config__.parallel_info() and runtime.name == "threads":
        pytest.skip("torch without an OpenMP runtime that others can share")
    assert "torch" in runtime.parts or runtime.name.startswith(("libgomp", "libomp", "libiomp"))
    maps = Path("/proc/self/maps")
    if maps.exists():
        loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "omp" in Path(line.split()[-1]).name}
        assert str(runtime.resolve()) in {str(Path(name).resolve()) for name in loaded}


@built
def test_other_formats_go_to_torch():
    torch.manual_seed(0)
    z, labels = tile(dtype=torch.float64)
    running, expected = (empty_statistics(len(z), dtype=torch.float64, device="cpu") for _ in range(2))
    cpp.CppEpilogue().statistics(z, labels, 1.0, running)
    TorchEpilogue().statistics(z, labels, 1.0, expected)
    assert torch.equal(running, expected)
    vectors = torch.randn(3, len(z), dtype=torch.float64)
    rows = RowGradients(vectors[0].exp(), vectors[1], vectors[2], None, None)
    a = cpp.CppEpilogue().gradient(z.clone(), labels, 1.0, rows, torch.float64)
    assert torch.equal(a, TorchEpilogue().gradient(z.clone(), labels, 1.0, rows, torch.float64))


@built
def test_unknown_instructions_raise():
    with pytest.raises(ValueError, match="portable"):
        cpp._cpu.use_instructions("sse9")


def test_without_the_module_it_says_why(monkeypatch):
    monkeypatch.setattr(cpp, "_reason", "the C++ kernels are not built")
    assert cpp.available() == "the C++ kernels are not built"
    with pytest.raises(ConfigError, match="not built"):
        cpp.CppEpilogue()


@needs_compiler
def test_make_setup_has_built_it():
    """The build is optional, so nothing else would notice that it failed."""
    assert cpp.available() is None


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What the build needs, and two modules: the whole package would only be copied."""
    folder = tmp_path_factory.mktemp("sources")
    copied = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]
    copied += ["megatron_lwz/__init__.py", "megatron_lwz/py.typed"]
    copied += ["megatron_lwz/kernels/__init__.py", "megatron_lwz/kernels/_cpu.pyi"]
    for name in copied:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    return folder


def wheel_contents(sources, tmp_path, **environment):
    pytest.importorskip("pybind11")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(tmp_path), str(sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_a_build_without_a_compiler_goes_on_without_the_module(sources, tmp_path):
    names = wheel_contents(sources, tmp_path, CC="/bin/false", CXX="/bin/false")
    assert {"megatron_lwz/kernels/__init__.py", "megatron_lwz/py.typed", "megatron_lwz/kernels/_cpu.pyi"} <= set(names)
    assert not any(name.endswith(".so") for name in names)


def test_the_source_distribution_holds_all_sources_of_the_kernels(sources, tmp_path):
    pytest.importorskip("pybind11")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=sources)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    kernels = {file.relative_to(ROOT).as_posix() for file in (ROOT / "csrc").rglob("*") if file.is_file()}
    assert {"csrc/cpu/rows.h"} <= kernels <= names
    assert {"setup.py", "megatron_lwz/py.typed", "megatron_lwz/kernels/_cpu.pyi"} <= names


@needs_compiler
@pytest.mark.long
def test_the_wheel_holds_the_module(sources, tmp_path):
    names = wheel_contents(sources, tmp_path)
    assert any(name.startswith("megatron_lwz/kernels/_cpu.") and name.endswith(".so") for name in names)
