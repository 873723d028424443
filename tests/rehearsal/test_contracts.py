"""Every kernel has a contract, and `tools/rehearse.py` knows every example that trains."""

from __future__ import annotations

import importlib
import pkgutil

import triton
import yaml

import megatron_lwz.kernels
from megatron_lwz.rehearsal.contracts import CONTRACTS
from megatron_lwz.rehearsal.launches import kernel_name
from tests.support.paths import ROOT
from tools.rehearse import EXAMPLES


def test_every_kernel_that_is_launched_has_a_contract() -> None:
    """Kernels whose name begins with an underscore are called by others, on the device."""
    found = set()
    for module in pkgutil.walk_packages(megatron_lwz.kernels.__path__, "megatron_lwz.kernels."):
        if module.name.endswith("kernels"):
            values = vars(importlib.import_module(module.name)).values()
            found |= {kernel_name(value) for value in values if isinstance(value, triton.JITFunction)}
    assert {name for name in found if "._" not in name} == set(CONTRACTS)


def test_the_tool_knows_every_example_that_trains() -> None:
    """Configs of models, prompts and corpora do not train: they name no run folder."""
    configs = {
        str(path.relative_to(ROOT / "examples"))
        for path in (ROOT / "examples").glob("*/*.yaml")
        if "run" in yaml.safe_load(path.read_text()) or path.name == "config.yaml"
    }
    assert {example.path for example in EXAMPLES} == configs
