"""Compiles and loads the C++ half of the fake device (fake_cuda.cpp), against the headers of the installed torch.

This module does not import torch: the library has to be loaded first.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from megatron_lwz.distributed import environment
from megatron_lwz.errors import EnvironmentSetupError

SOURCE = Path(__file__).with_name("fake_cuda.cpp")
FLAGS = ("-std=c++20", "-O1", "-g0", "-shared", "-fPIC", "-fvisibility=hidden")
_ENTRY = "lwz_install_guard"


def build() -> Path:
    """Returns the compiled library, from the user's cache if source, torch and compiler are the same.

    Raises EnvironmentSetupError with the reason where it cannot be compiled.
    """
    compiler = shutil.which(environment.get("CXX") or "") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise EnvironmentSetupError("no C++ compiler (g++, clang++ or CXX): a rehearsal compiles its fake device once")
    library = _cache() / f"fake_cuda-{_key(compiler)}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        _compile(compiler, library)
    return library


def load(library: Path) -> ctypes.CDLL:
    """Loads the library. Must precede `import torch`, whose first look at its CUDA hooks is final."""
    assert "torch" not in sys.modules, "the fake device must be loaded before torch is imported"
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def install_guard(library: ctypes.CDLL) -> None:
    """Makes the fake device that of torch. Follows `import torch`."""
    if not getattr(library, _ENTRY)():
        raise EnvironmentSetupError("torch does not know the hooks of the fake device: rebuild it for this torch")


def _compile(compiler: str, library: Path) -> None:
    root = _torch_root()
    folders = [root / "include", root / "include" / "torch" / "csrc" / "api" / "include"]
    libraries = root / "lib"
    with tempfile.NamedTemporaryFile(dir=library.parent, suffix=".so", delete=False) as file:
        made = Path(file.name)
    command = [
        compiler, *FLAGS, str(SOURCE), "-o", str(made), *(f"-I{folder}" for folder in folders),
        f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        made.unlink(missing_ok=True)
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-300:])
        raise EnvironmentSetupError(f"{compiler} cannot compile {SOURCE.name} against torch's headers: {first.strip()}")
    made.replace(library)  # at once: another process may be building the same


def _key(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    torch = importlib.metadata.version("torch")
    text = "\n".join((SOURCE.read_text(), " ".join(FLAGS), torch, str(_torch_root()), compiler, version))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _torch_root() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _cache() -> Path:
    """Returns a folder of this user: a library that is loaded must not come from where others may write."""
    home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "megatron_lwz"
