"""The CUDA epilogue without a GPU: its logic on a CPU against fp64, and what nvcc makes of it.

`kernels/cuda/on_cpu.h` runs the same source thread by thread, with barriers and shuffles. That shows indices, barriers
and formulas right; the GPU's own arithmetic, memory and speed are for tests/gpu.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from megatron_lwz.kernels.linear_logprob import cuda
from megatron_lwz.kernels.linear_logprob.plain import TorchEpilogue
from tests.support import cuda_epilogue_cases as cases

REGISTERS = {"row_statistics": 48, "row_gradient": 48}
"""Of 65,536 per SM: 5 CTAs of 256 threads (`__launch_bounds__`)."""


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> cuda.CudaEpilogue:
    library = tmp_path_factory.mktemp("cuda") / "on_cpu.so"
    flags = [
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Werror",
        "-shared",
        "-fPIC",
        "-fno-gnu-unique",
    ]
    command = ["g++", *flags, "-DLWZ_ON_CPU", "-x", "c++", str(cuda.SOURCES / cuda.MAIN), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cuda.CudaEpilogue(library)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH: the CUDA sources are not compiled on this machine")
    return cuda.build(library=tmp_path_factory.mktemp("cuda") / "sm90.so")


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 6, 512, 1029, 4100])
def test_statistics_of_tiles_equal_fp64(on_cpu: cuda.CudaEpilogue, dtype: torch.dtype, columns: int) -> None:
    cases.check_statistics(on_cpu, cases.make(rows=3, columns=columns, dtype=dtype))


@pytest.mark.parametrize("dtypes", cases.PAIRS, ids=str)
@pytest.mark.parametrize("columns", [1, 6, 1029, 4100])
def test_gradient_equals_fp64(on_cpu: cuda.CudaEpilogue, dtypes: tuple[torch.dtype, torch.dtype], columns: int) -> None:
    cases.check_gradient(on_cpu, cases.make(rows=3, columns=columns, dtype=dtypes[0]), dtypes[1])


def test_a_tile_that_is_refused_raises_with_the_name_of_the_error(on_cpu: cuda.CudaEpilogue) -> None:
    z, labels = torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="lwz_row_statistics: cudaErrorInvalidValue"):
        on_cpu.statistics(z, labels, 1.0, torch.zeros(4, 2))


def test_rows_may_start_anywhere(on_cpu: cuda.CudaEpilogue) -> None:
    case = cases.make(rows=3, columns=1029, dtype=torch.float32, offset=1)
    assert case.z.data_ptr() % 16
    cases.check_statistics(on_cpu, case)
    cases.check_gradient(on_cpu, case, torch.bfloat16)


def test_idle_rows_are_exactly_zero_and_not_read(on_cpu: cuda.CudaEpilogue) -> None:
    cases.check_idle_rows(on_cpu)


def test_all_negative_and_huge_logits(on_cpu: cuda.CudaEpilogue) -> None:
    for shift in (-3e4, 3e4):
        case = cases.make(rows=2, columns=700, dtype=torch.float32, shift=shift)
        cases.check_statistics(on_cpu, case, tolerance=4e-3)  # an ulp of such a logit


def test_fp64_runs_in_plain_torch(on_cpu: cuda.CudaEpilogue) -> None:
    case = cases.make(rows=3, columns=40, dtype=torch.float64)
    for ours, theirs in zip(
        cases.statistics(on_cpu, case, tile=17), cases.statistics(TorchEpilogue(), case, tile=17), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_compiles_for_hopper_without_spills(compiled: Path) -> None:
    usage = dict(_resources(compiled))
    assert len(usage) == 6, usage
    for kernel, found in usage.items():
        limit = next(limit for name, limit in REGISTERS.items() if name in kernel)
        assert found["REG"] <= limit and found["STACK"] == found["LOCAL"] == 0, (kernel, found)


def test_moves_sixteen_bytes_at_a_time(compiled: Path) -> None:
    for kernel, code in _assembly(compiled).items():
        vectors = len(re.findall(r"LDG\.E\.EF\.128", code))
        assert vectors >= 4, kernel
        assert not re.search(r"\b(LDL|STL)\b", code), kernel  # local memory
        if "row_statistics" not in kernel:
            assert re.search(r"STG\.E(\.\w+)*\.(64|128)", code), kernel


def test_library_exports_its_functions_and_names_its_errors(compiled: Path) -> None:
    functions = ctypes.CDLL(str(compiled))
    assert all(hasattr(functions, name) for name in cuda.FUNCTIONS)
    functions.lwz_error_name.restype = ctypes.c_char_p
    assert functions.lwz_error_name(1) == b"cudaErrorInvalidValue"


def test_build_says_why_it_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"cannot run .*No such file"):
        cuda.build(nvcc=str(tmp_path / "nvcc"), library=tmp_path / "x.so")
    with pytest.raises(RuntimeError, match="failed"):
        cuda.build(nvcc="false", library=tmp_path / "x.so")


def _cuobjdump(option: str, library: Path) -> str:
    """Triton brings the tool."""
    package = importlib.util.find_spec("triton").submodule_search_locations[0]
    tool = Path(package) / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([str(tool), option, str(library)], capture_output=True, text=True, check=True).stdout


def _resources(library: Path) -> list[tuple[str, dict[str, int]]]:
    """(mangled name, {REG, STACK, LOCAL, …}) of every kernel."""
    found = re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", _cuobjdump("-res-usage", library))
    return [(name, {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", numbers)}) for name, numbers in found]


def _assembly(library: Path) -> dict[str, str]:
    parts = re.split(r"Function : (\S+)", _cuobjdump("-sass", library))[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))
