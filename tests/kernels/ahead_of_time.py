"""Compiles Triton kernels for an H200 (sm_90) without one, and reads what the machine code looks like."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SM_90 = GPUTarget("cuda", 90, 32)
LOADS_128 = r"\bLDG\.E\S*\.128\b"
STORES_128 = r"\bSTG\.E\S*\.128\b"


@dataclass(frozen=True)
class MachineCode:
    """One kernel variant. `instructions` are its lines of SASS, in order."""

    registers: int
    """Per thread, of 255; 32 let 2048 threads, all an SM can hold, be resident."""
    local_bytes: int
    """Stack and local memory per thread: what is spilled."""
    instructions: list[str]

    def count(self, pattern: str) -> int:
        """Instructions that match a regular expression."""
        return len(self.positions(pattern))

    def positions(self, pattern: str) -> list[int]:
        """Which instructions match a regular expression, rising."""
        return [i for i, line in enumerate(self.instructions) if re.search(pattern, line)]

    def loops(self) -> list[list[str]]:
        """The bodies of loops: from the target of each backward branch to the branch."""
        addresses = {int(line.split()[0], 16): i for i, line in enumerate(self.instructions)}
        bodies = []
        for i, line in enumerate(self.instructions):
            branch = re.search(r"\bBRA\S* (?:\S+, )*0x([0-9a-f]+)", line)
            target = addresses[int(branch[1], 16)] if branch else i
            if target < i:
                bodies.append(self.instructions[target : i + 1])
        return bodies


def compile_ahead_of_time(
    kernel: triton.JITFunction,
    types: dict[str, str],
    constants: dict[str, Any],
    *,
    num_warps: int = 4,
    enable_fp_fusion: bool = True,
    aligned: Sequence[str] = (),
) -> MachineCode:
    """The machine code of a kernel whose arguments are `types` ("*fp32", "i32", "fp32" …) or `constants`.

    Constants are constexpr and None arguments. The `aligned` arguments are multiples of 16. Nothing else is promised, as
    when a kernel is not specialised on the values.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
    multiples = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    compiled = triton.compile(ASTSource(kernel, signature, constants, multiples), target=SM_90, options=options)
    resources = _cuobjdump("-res-usage", compiled.asm["cubin"])
    registers, stack, local = (int(re.search(rf"\b{name}:(\d+)", resources)[1]) for name in ("REG", "STACK", "LOCAL"))
    sass = _cuobjdump("-sass", compiled.asm["cubin"])
    instructions = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;/]+);", sass)
    return MachineCode(registers, stack + local, [f"{address} {text}" for address, text in instructions])


def _cuobjdump(option: str, cubin: bytes) -> str:
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    assert tool is not None, "cuobjdump comes with Triton and with CUDA: neither is here"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, option, file.name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
