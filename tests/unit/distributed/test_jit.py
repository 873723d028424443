"""Without a GPU Megatron-Core is imported without torch's compiler."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec

import torch

from megatron_lwz.distributed import jit


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
