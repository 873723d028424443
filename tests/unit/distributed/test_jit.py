"""Without a GPU Megatron-Core is imported without torch's compiler."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import pytest
import torch

from megatron_lwz.distributed import jit

PACKAGE = Path(jit.__file__).parents[1]

UNCHANGED = """
import sys
before = list(sys.meta_path)
import megatron_lwz
import megatron_lwz.rollout.vllm_guard  # runs inside vLLM
assert sys.meta_path == before, sys.meta_path
"""

FIRST = """
import importlib, sys
import torch

class Stop(ImportError):
    pass

class Probe:
    def find_spec(self, name, path, target=None):
        if name == "megatron.core":
            raise Stop("Megatron-Core is asked for")

def installed():
    return any(type(finder).__module__ == "megatron_lwz.distributed.jit" for finder in sys.meta_path)

before = [Probe(), *sys.meta_path]
for name in sys.argv[1:]:
    sys.meta_path[:] = before
    for module in [module for module in sys.modules if module.startswith("megatron_lwz")]:
        del sys.modules[module]
    try:
        importlib.import_module(name)
    except Stop:
        pass
    assert installed(), name
"""

COMPILER = """
import sys
import megatron_lwz.training.grpo
import megatron_lwz.rollout.engine.policy
import megatron.core.jit as jit
assert jit.jit_fuser is jit.noop_decorator
assert not {"torch._dynamo", "torch._inductor"} & set(sys.modules)
"""


def run(code: str, *arguments: str) -> None:
    """In a process of its own; raises when it fails."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_the_package_installs_no_hook() -> None:
    run(UNCHANGED)


def test_every_module_that_imports_megatron_core_installs_the_hook_first() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if "megatron.core" in file.read_text(encoding="utf-8")]
    names = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files]
    assert "megatron_lwz.distributed.groups" in names and "megatron_lwz.data.indexed" in names
    run(FIRST, *(name for name in names if name != jit.__name__))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU Megatron-Core compiles its fused functions")
def test_without_a_gpu_nothing_imports_torchs_compiler() -> None:
    run(COMPILER)


def test_the_switch_is_thrown_while_megatron_core_is_imported(monkeypatch) -> None:
    jit.install()
    monkeypatch.delitem(sys.modules, jit.MODULE, raising=False)
    spec = find_spec(jit.MODULE)
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.jit_fuser is (torch.compile if gpu else module.noop_decorator)


def test_the_hook_is_installed_once() -> None:
    before = list(sys.meta_path)
    jit.install()
    assert sys.meta_path == before
