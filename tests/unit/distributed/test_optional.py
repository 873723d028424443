"""Optional packages that are installed but do not work are left out, and the reason is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_lwz.distributed import optional

CUDA = "libcublas.so.13: cannot open shared object file"

RUN = """
import torch
torch.cuda.is_available = lambda: True  # Megatron-Core then imports all that it would import on a GPU machine

from megatron_lwz.config import validate
from megatron_lwz.errors import ConfigError
from megatron_lwz.models.qwen import attention_backend
from megatron_lwz.distributed import optional
from megatron_lwz.training import optimizer
import megatron.core.optimizer, megatron.core.tensor_parallel.layers as layers

def config(attention):
    return validate({"model": {"preset": "qwen2.5-0.5b", "attention": attention}})

assert attention_backend(config("auto")) == "torch"
assert megatron.core.optimizer.Adam is torch.optim.AdamW
assert not layers.HAVE_TE and not layers._grad_accum_fusion_available
print(optional.broken())
for asked in ("transformer_engine", "flash"):
    try:
        attention_backend(config(asked))
    except ConfigError as error:
        print(error)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages, on a machine that looks as if it had a GPU."""
    before = dict(sys.modules)
    for name in before:
        if name.partition(".")[0] in ("transformer_engine", "flash_attn", "apex", "amp_C"):  # the machine's own
            del sys.modules[name]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    optional.probe.cache_clear()
    yield tmp_path
    optional.probe.cache_clear()
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]
    sys.modules.update(before)


def package(site: Path, name: str, code: str = "") -> None:
    """A package with `code`; a dotted name is a subpackage."""
    folder = site.joinpath(*name.split("."))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text(code, encoding="utf-8")


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError", "AssertionError"])
@pytest.mark.parametrize("name", ["transformer_engine", "flash_attn", "apex", "fused_weight_gradient_mlp_cuda"])
def test_whatever_a_package_raises_is_the_reason_in_one_line(site: Path, name: str, error: str) -> None:
    package(site, name, f"raise {error}('''{CUDA}\\n  see the log''')")
    assert optional.unusable(name) == f"{error}: {CUDA} see the log"
    assert list(optional.broken()) == [name]
    with pytest.raises(ImportError):
        __import__(name)


def test_a_package_that_works_is_used(site: Path) -> None:
    package(site, "transformer_engine")
    package(site, "transformer_engine.pytorch")
    package(site, "flash_attn", "def flash_attn_varlen_func(): ...")
    assert optional.unusable("transformer_engine") is None and optional.unusable("flash_attn") is None
    assert optional.unusable("apex") == optional.NOT_INSTALLED
    assert not optional.broken()


def test_a_package_that_is_only_half_there_is_hidden_whole(site: Path) -> None:
    """Transformer Engine's top level swallows the failed import of its torch half."""
    half = "try:\n    from . import pytorch\nexcept ImportError:\n    pass\nfrom . import common"
    package(site, "transformer_engine", half)
    package(site, "transformer_engine.common")
    package(site, "transformer_engine.pytorch", "raise ImportError('undefined symbol: _ZN3c10')")
    package(site, "flash_attn")  # the fourth major version has no such function
    package(site, "apex")  # built without its CUDA extensions
    package(site, "apex.optimizers")
    assert optional.unusable("transformer_engine") == "ImportError: undefined symbol: _ZN3c10"
    assert optional.unusable("flash_attn") == "it has no flash_attn_varlen_func"
    assert optional.unusable("apex") == "ModuleNotFoundError: No module named 'amp_C'"
    for name in ("transformer_engine", "transformer_engine.common", "flash_attn", "apex.optimizers", "amp_C"):
        with pytest.raises(ImportError):
            __import__(name)


def test_without_a_gpu_none_is_imported(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    package(site, "apex", "raise SystemExit('imported')")
    assert optional.unusable("apex") == optional.NO_GPU
    assert not optional.broken()
    with pytest.raises(ImportError):
        __import__("apex")


def test_broken_packages_end_neither_megatron_core_nor_the_run(tmp_path: Path) -> None:
    """Of these Megatron-Core's own guards would let only the ImportError pass."""
    package(tmp_path, "transformer_engine", f"raise OSError({CUDA!r})")
    package(tmp_path, "apex", "raise RuntimeError('built for another torch')")
    package(tmp_path, "flash_attn", "raise ImportError('undefined symbol: _ZN3c10')")
    path = f"{tmp_path}:{Path(optional.__file__).parents[2]}"
    environment = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    broken, engine, flash = done.stdout.splitlines()
    for reason in (f"OSError: {CUDA}", "RuntimeError: built for another torch", "ImportError: undefined symbol"):
        assert reason in broken
    assert "model.attention" in engine and f"OSError: {CUDA}" in engine
    assert "model.attention" in flash and "undefined symbol" in flash
