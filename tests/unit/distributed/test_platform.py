"""The tables of the CPU platform against the installed Megatron-Core: a new release that moves something fails here."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import megatron.core
import pytest
import torch

from megatron_lwz.distributed import megatron_version, platform

CORE = Path(megatron.core.__path__[0])
UNUSED = (*platform.UNUSED_MODULES, *megatron_version.unused_modules())


def _cuda_factories(file: Path) -> set[str]:
    """Names of calls in `file` with a literal CUDA device or pinned memory."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            device = keyword.arg == "device" and isinstance(value, str) and value.startswith("cuda")
            if device or (keyword.arg == "pin_memory" and value is True):
                found.add(ast.unparse(node.func))
    return found


def _modules() -> dict[str, set[str]]:
    literals = {}
    for file in sorted(CORE.rglob("*.py")):
        if names := _cuda_factories(file):
            module = file.relative_to(CORE).with_suffix("").as_posix().replace("/", ".")
            literals[module.removesuffix(".__init__")] = names
    return literals


def _unused(module: str) -> bool:
    return any(module.startswith(name) if name.endswith(".") else module == name for name in UNUSED)


def test_every_module_with_a_cuda_literal_is_patched_or_known_to_be_unused() -> None:
    unknown = {m for m in _modules() if m not in platform.PATCHED_MODULES and not _unused(m)}
    assert not unknown, f"megatron-core {megatron.core.__version__} names CUDA in {sorted(unknown)}: extend the tables"


def test_every_patched_module_still_needs_its_patch() -> None:
    stale = set(platform.PATCHED_MODULES) - set(_modules())
    assert not stale, f"no CUDA literal left in {sorted(stale)}: drop them from PATCHED_MODULES"


def test_every_unused_entry_still_names_a_module() -> None:
    literals = _modules()
    stale = [name for name in UNUSED if not any(m == name or m.startswith(name) for m in literals)]
    assert not stale, f"no CUDA literal left under {stale}: drop them from the tables"


def test_factories_of_patched_modules_are_covered() -> None:
    called = set().union(*(names for module, names in _modules().items() if module in platform.PATCHED_MODULES))
    called = {name.removeprefix("torch.") for name in called if re.fullmatch(r"torch\.\w+", name)}
    assert called == set(platform.FACTORIES), "FACTORIES must name exactly what the patched modules call"


def test_patched_attributes_exist_upstream() -> None:
    for name in platform.CUDA_CALLS:
        assert hasattr(torch.cuda, name), f"torch.cuda.{name} is gone"
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    assert hasattr(random, "_get_cuda_rng_state")
    assert hasattr(random, "_set_cuda_rng_state")
    for name in platform.PATCHED_MODULES:
        assert hasattr(importlib.import_module(f"megatron.core.{name}"), "torch"), f"{name} no longer imports torch"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is for machines without CUDA")
def test_install_points_cuda_at_the_cpu_and_conversions_stay() -> None:
    platform.install()
    platform.install()
    tensor = torch.ones(2)
    assert tensor.cuda() is tensor
    assert tensor.type() == "torch.cuda.FloatTensor"
    assert tensor.type(torch.float64).dtype == torch.float64
    assert platform.device() == torch.device("cpu")
    schedules = importlib.import_module("megatron.core.pipeline_parallel.schedules")
    assert schedules.torch.zeros([], device="cuda").device == torch.device("cpu")
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_nothing_is_installed_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    before = (torch.cuda.current_device, torch.Tensor.cuda, torch.Tensor.type)
    monkeypatch.setattr(platform, "has_gpu", lambda: True)
    platform.install.__wrapped__()
    assert (torch.cuda.current_device, torch.Tensor.cuda, torch.Tensor.type) == before


def test_a_rank_alone_does_not_exchange_weights_with_itself() -> None:
    done: list[Any] = []

    class Group:
        def __init__(self, size: int) -> None:
            self.size = lambda: size

    collective = platform._unless_alone(lambda output, given, **options: done.append(options["group"].size()))
    whole = torch.zeros(4)
    collective(whole, whole[:], group=Group(1))
    assert not done
    collective(whole, torch.zeros(4), group=Group(1))
    collective(whole, whole[:2], group=Group(2))
    collective(whole, whole, group=Group(1), async_op=True)
    assert done == [1, 2, 1]
    buffers = importlib.import_module("megatron.core.distributed.param_and_grad_buffer")
    assert all(callable(getattr(buffers, name)) for name in platform.ALONE)
