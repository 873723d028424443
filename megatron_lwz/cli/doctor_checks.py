"""What `lwz doctor` looks at on this machine, one function for each subject."""

from __future__ import annotations

import importlib.metadata
import locale
import os
import platform
import resource
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from megatron_lwz.errors import LwzError
from megatron_lwz.processor import instruction_sets
from megatron_lwz.units import GIB, MIB

OPEN_FILES = 1024
"""Open files that 256 streams, the journal and the checkpoints need with room to spare."""
SHARED_MEMORY_GIB = 1
"""NCCL's ranks of one node exchange data through /dev/shm. A container has 64 MiB of it unless it is told otherwise."""
ROOM_GIB = 5
"""Less free disk or memory than this is said: a 0.5B policy trains in 11 GiB, its checkpoint takes 7 GiB."""
PACKAGE = "megatron-lwz"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fault`: something does not work until `advice` is followed."""

    state: Literal["ok", "note", "fault"]
    name: str
    found: str
    advice: str = ""


def python() -> Iterator[Finding]:
    """Yields Python, the system, and the packages that do not satisfy the project's requirements."""
    yield Finding("ok", "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    faults = list(_unsatisfied())
    yield from faults
    if not faults:
        shown = ("torch", "megatron-core", "transformers", "triton")
        yield Finding("ok", "packages", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in shown))


def _unsatisfied() -> Iterator[Finding]:
    try:
        required = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("fault", "packages", f"{PACKAGE} is not installed here", "pip install -e .")
        return
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("fault", requirement.name, "not installed", f'pip install "{requirement}"')
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield Finding("fault", requirement.name, found, f'pip install "{requirement}"')


def gpus() -> Iterator[Finding]:
    """Yields the GPUs as torch sees them, NCCL, and the packages that are used on GPUs only."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        yield from _without_gpu(torch.version.cuda, [str(warning.message) for warning in said])
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found = f"{about.name}, {about.total_memory / GIB:.0f} GiB, compute capability {about.major}.{about.minor}"
        if about.major < 8:
            yield Finding("note", f"GPU {index}", found, "no bf16: set training.precision: fp32")
        else:
            yield Finding("ok", f"GPU {index}", found)
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    yield Finding("ok", "CUDA", f"torch is built for CUDA {torch.version.cuda}, NCCL {nccl}")
    yield from _gpu_packages()


def _without_gpu(cuda: str | None, said: list[str]) -> Iterator[Finding]:
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        yield Finding("ok", "GPU", "none: every stage runs on the CPU")
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding("note", "GPU", "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES to use it")
    elif cuda is None:
        yield Finding("fault", "GPU", "there is one, but torch is a build for CPUs", "install a CUDA build of torch")
    else:
        reason = " ".join(" ".join(said).split()) or "torch cannot use it"
        yield Finding("fault", "GPU", reason, f"a driver for CUDA {cuda}, or a torch built for the driver's CUDA")


def _gpu_packages() -> Iterator[Finding]:
    from megatron_lwz.distributed import optional

    for name, reason in optional.probe().items():
        if reason is None:
            yield Finding("ok", name, "works")
        elif reason == optional.NOT_INSTALLED:
            yield Finding("note", name, "not installed", "slower without it; docs/kernels.md says what it is used for")
        else:
            yield Finding(
                "fault", name, f"installed, but it fails: {reason}", "reinstall it for this torch, or remove it"
            )


def processor() -> Iterator[Finding]:
    """Yields cores, instruction set, the C++ kernel and the compiler."""
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in instruction_sets()]
    yield Finding("ok", "CPU", f"{len(os.sched_getaffinity(0))} cores, {', '.join(sets) or 'no AVX2'}")
    try:
        from megatron_lwz.kernels import _cpu
    except ImportError as error:
        yield Finding(
            "note", "C++ kernel", f"{error}", "pip install -e . with a C++ compiler; plain torch is used instead"
        )
    else:
        yield Finding("ok", "C++ kernel", f"uses {_cpu.instructions()}")
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        yield Finding("note", "C++ compiler", "none", "Triton needs one on GPUs: apt-get install g++")
    else:
        yield Finding("ok", "C++ compiler", compiler)


def room(folder: Path) -> Iterator[Finding]:
    """Yields free memory, the disk under `folder` (free, writable, lockable by several hosts), and /dev/shm."""
    from megatron_lwz.distributed import host_memory

    free = host_memory.free_memory()
    few = free < ROOM_GIB * GIB
    yield Finding("note" if few else "ok", "memory", f"{free / GIB:.1f} GiB free", "too little for 0.5B" if few else "")
    yield from _disk(folder)
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0
    if shared < SHARED_MEMORY_GIB * GIB:
        yield Finding(
            "note", "/dev/shm", f"{shared / MIB:.0f} MiB", "docker run --shm-size 16g, for NCCL within a node"
        )
    else:
        yield Finding("ok", "/dev/shm", f"{shared / GIB:.0f} GiB")


def _disk(folder: Path) -> Iterator[Finding]:
    from megatron_lwz.file_lock import FileLock
    from megatron_lwz.mounts import local_locks

    free = shutil.disk_usage(folder).free
    few = free < ROOM_GIB * GIB
    advice = "a checkpoint takes 14 bytes per parameter" if few else ""
    yield Finding("note" if few else "ok", "disk", f"{free / GIB:.0f} GiB free in {folder.resolve()}", advice)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".lwz-doctor-") as place:
            FileLock(Path(place) / "lock").release()
    except (OSError, LwzError) as error:
        yield Finding("fault", "run folders", f"{folder}: {error}", "name a folder on another disk: lwz doctor --dir")
        return
    if reason := local_locks(folder):
        advice = "two hosts could start in one run folder: mount it with locks, or take care"
        yield Finding("note", "run folders", f"{reason}: locks hold on this host only", advice)
    else:
        yield Finding("ok", "run folders", "can be written and locked")


def system() -> Iterator[Finding]:
    """Yields the limits, names and variables of the system on which runs were seen to fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        yield Finding("note", "open files", f"{soft} at most", f"ulimit -n {min(hard, 65536)}")
    else:
        yield Finding("ok", "open files", f"{soft} at most")
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        advice = "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to an interface"
        yield Finding("note", "host name", f"{socket.gethostname()} has no address", advice)
    else:
        local = address.startswith("127.")
        advice = "other nodes cannot reach it: with several nodes set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        yield Finding("note" if local else "ok", "host name", f"{socket.gethostname()} is {address}", advice * local)
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
        yield Finding("ok", "loopback", "a server can listen")
    except OSError as error:
        yield Finding("fault", "loopback", str(error), "embedded engines listen on 127.0.0.1: allow it")
    encoding = locale.getencoding()
    if encoding.upper().replace("-", "") != "UTF8":
        yield Finding("note", "locale", encoding, "LC_ALL=C.UTF-8 shows Chinese text; files are UTF-8 in any case")
    else:
        yield Finding("ok", "locale", encoding)
    vllm = shutil.which("vllm")
    found = f"command {vllm}" if vllm else "no command `vllm` on the PATH"
    yield Finding(
        "ok", "vLLM", found if vllm else f"{found}: only rollout.engine: vllm needs it, in its own environment"
    )
