"""What `make gpu-check` needs of a machine, looked up before anything runs. Needs the standard library only.

A GPU machine often has torch, Triton, numpy and pytest and no network. The other packages (requirements/gpu-check.txt)
come as wheels, which `make gpu-check-wheels` downloads elsewhere and `unpack` turns into a folder for PYTHONPATH.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CARRIED = ROOT / "requirements" / "gpu-check.txt"
OWN = ("torch", "triton", "numpy", "pytest")
"""Packages that the machine itself must have."""
OLDEST_TORCH = (2, 11)
PEERS = ("liger-kernel", "cut-cross-entropy", "trl", "verl", "flash-attn", "transformer-engine")
"""Packages that are compared with, or used, where they are installed."""
MEMORY_GIB = 48
"""GPU memory that the largest shape takes in plain torch: T x H x V = 16384 x 3584 x 152064."""
DISK_GIB = 12
"""For the 0.5B policy: weights for the engine, and a checkpoint with the state of the optimizer."""

_PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": None}
if torch.cuda.is_available():
    free, total = torch.cuda.mem_get_info()
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    found |= {"gpu": torch.cuda.get_device_name(), "capability": capability, "free": free, "total": total}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Need:
    """One thing that is needed: its name, what was found ("" if nothing), and whether nothing runs without it."""

    name: str
    found: str
    required: bool = True
    advice: str = ""


def unpack(wheels: Path, *, tag: str = "") -> Path | None:
    """Unpacks the wheels in `wheels` that fit this Python; returns the folder for PYTHONPATH, None without such wheels.

    `tag` replaces this Python's own ("cp312").
    """
    tag = tag or f"cp{sys.version_info.major}{sys.version_info.minor}"
    fitting = [wheel for wheel in sorted(wheels.glob("*.whl")) if fits(wheel.name, tag)]
    if not fitting:
        return None
    site, done = wheels / f"site-{tag}", wheels / f"site-{tag}.json"
    names = [wheel.name for wheel in fitting]
    if not done.exists() or json.loads(done.read_text()) != names:
        done.unlink(missing_ok=True)
        shutil.rmtree(site, ignore_errors=True)
        for wheel in fitting:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        done.write_text(json.dumps(names))
    return site


def fits(wheel: str, tag: str) -> bool:
    """Whether a Python `tag` ("cp312") can import what a wheel of this name holds, by the tags in the name."""
    pythons, abi = wheel.removesuffix(".whl").split("-")[-3:-1]
    if abi == "abi3":
        return any(int(python[3:]) <= int(tag[3:]) for python in pythons.split(".") if python.startswith("cp3"))
    return abi == tag or "py3" in pythons.split(".")


def carried() -> list[str]:
    """Returns the names of the packages that come as wheels."""
    lines = CARRIED.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def version(name: str) -> str:
    """Returns the version of an installed (or unpacked) package, "" if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine(environment: dict[str, str]) -> dict[str, Any]:
    """Returns what torch says of itself and of the GPU. It runs in a process of its own, which frees the GPU again."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"torch": "", "cuda": None, "gpu": None, "error": done.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def needs(device: str, about: dict[str, Any], work: Path, environment: dict[str, str]) -> list[Need]:
    """Returns everything that the check needs or can use on this machine, found or not."""
    python = ".".join(map(str, sys.version_info[:3]))
    path = environment["PATH"]
    listed = [Need("Python 3.11 or newer", python if sys.version_info >= (3, 11) else "", advice="another GPU_PYTHON")]
    for name in OWN:
        # A nightly build may be distributed under another name.
        found = version(name) or ("present" if importlib.util.find_spec(name) else "")
        listed.append(Need(name, found, advice=f"{sys.executable} has no {name}: install it there"))
    own = about["torch"]
    wanted = ".".join(map(str, OLDEST_TORCH))
    if own and tuple(map(int, re.findall(r"\d+", own)[:2])) < OLDEST_TORCH:
        listed.append(Need(f"torch {wanted} or newer", "", advice=f"this torch is {own}"))
    if error := about.get("error"):
        listed.append(Need("a torch that can be imported", "", advice=error))
    absent = "not installed: run `make gpu-check-wheels` where there is a network, and copy build/gpu-wheels here"
    listed += [Need(name, version(name), advice=absent) for name in carried()]
    if device == "cuda":
        gpu = about["gpu"] and f"{about['gpu']}, sm_{about['capability']}, {about['free'] / 2**30:.0f} GiB free"
        listed.append(Need("a GPU", gpu or "", advice="torch sees none; DEVICE=cpu rehearses the check without one"))
        if gpu and about["free"] < MEMORY_GIB * 2**30:
            note = f"less than {MEMORY_GIB} GiB are free: the larger shapes will be left out"
            listed.append(Need(f"{MEMORY_GIB} GiB of GPU memory", "", required=False, advice=note))
    free = shutil.disk_usage(work).free / 2**30
    least = DISK_GIB if device == "cuda" else 1
    listed.append(
        Need(f"{least} GiB of disk in {work}", f"{free:.0f} GiB" if free >= least else "", advice="free some")
    )
    nvcc = shutil.which("nvcc", path=path) or ""
    listed.append(Need("nvcc", nvcc, required=False, advice="not on PATH: the CUDA epilogue is not built"))
    compiler = shutil.which("g++", path=path) or shutil.which("clang++", path=path) or ""
    listed.append(Need("g++ or clang++", compiler, required=False, advice="absent: no dry run beside the step"))
    listed += [Need(name, version(name), required=False, advice="absent: not compared with") for name in PEERS]
    return listed


def environment_for(site: Path | None) -> dict[str, str]:
    """Returns the environment of the parts: repository and carried packages first on PYTHONPATH, nvcc last on PATH."""
    paths = [str(ROOT), *([str(site)] if site else []), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    compilers = [os.environ.get("PATH", os.defpath), f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"]
    return {
        **os.environ,
        "PATH": os.pathsep.join(compilers),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
    }
