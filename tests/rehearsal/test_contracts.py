"""Every kernel has a contract, and `tools/rehearse.py` knows every example that trains."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys

import triton
import yaml

import megatron_lwz.kernels
from megatron_lwz.config import load_config
from megatron_lwz.rehearsal.contracts import CONTRACTS
from megatron_lwz.rehearsal.launches import kernel_name
from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))

from rehearsal_examples import EXAMPLES, Example, example_cases


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


def test_the_tool_rehearses_as_many_ranks_as_the_scripts_start() -> None:
    for example in EXAMPLES:
        if example.for_gpus:
            assert example.world == declared_ranks(example), example.path


def test_configs_that_a_rank_cannot_tell_apart_are_rehearsed_once() -> None:
    names = [case.name for case in example_cases()]
    chain = [name for name in names if name.startswith("longwriter_zero_32b_64xh100/") and " grpo " in name]
    assert len(chain) == 1 and chain[0].endswith("(and 1_base_nothink.yaml, 2_base_think.yaml, 5_longwriter_zero.yaml)")
    assert all(any(example.path.rpartition("/")[2] in name for name in names) for example in EXAMPLES)


def test_every_example_has_passed_on_the_page() -> None:
    """Where this fails, an example is new or does something else: make the page's part again."""
    page = (ROOT / "docs" / "benchmarks" / "rehearsal.md").read_text(encoding="utf-8")
    passed = {line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.endswith(" | passed |")}
    missing = sorted({case.name for case in example_cases()} - passed)
    assert not missing, "python tools/rehearse.py --part examples --page docs/benchmarks/rehearsal.md"


def declared_ranks(example: Example) -> int:
    """Nodes × GPUs, as the example's script, or the chain's script of that step, or its section `launch` declares them."""
    folder, _, name = example.path.rpartition("/")
    step = (
        "5_longwriter_zero" if folder.startswith("longwriter_zero") and name == "config.yaml" else name[: -len(".yaml")]
    )
    scripts = [ROOT / "examples" / folder / f"{script}.sh" for script in (step, "cluster", "run")]
    text = "\n".join(path.read_text() for path in scripts if path.exists())
    found = {key: int(value) for key, value in re.findall(r"^TRAINER_(NODES|GPUS)=(\d+)$", text, re.MULTILINE)}
    launch = load_config(ROOT / "examples" / example.path).launch
    return found["NODES"] * found["GPUS"] if found else launch.nodes * launch.ranks
