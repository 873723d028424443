"""GPUs as data: one file per card in hardware/, with the pages that each number was read from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import Field

from megatron_lwz.config.base import Section
from megatron_lwz.errors import LwzError

FOLDER = Path(__file__).with_name("hardware")
DEFAULT = "h100-80g"


class Sources(Section):
    """Where the numbers come from."""

    vendor: str = Field(description="the vendor's page or data sheet, which says them first")
    read: dict[str, str] = Field(description="number → the page on which it was read")
    not_checked: str = Field(description="what no page of the vendor confirmed")


class Gpu(Section):
    """A card and its links. All are the vendor's numbers; a run reaches only a part of the rates."""

    name: str
    device: str = Field(description="the name that the driver, and so torch, gives it")
    memory_gb: float = Field(gt=0, description="10^9 bytes")
    bf16_tflops: float = Field(gt=0, description="dense matrix products, 10^12 FLOP/s")
    memory_gb_per_s: float = Field(gt=0)
    nvlink_gb_per_s: float = Field(gt=0, description="in one direction")
    network_gb_per_s: float = Field(gt=0, description="in one direction, per GPU")
    gpus_per_node: int = Field(gt=0)
    sources: Sources

    @property
    def memory(self) -> int:
        """Bytes that tensors may take. Cards have some 7 % more: that is for the CUDA context and NCCL's buffers."""
        return int(self.memory_gb * 1e9)


@cache
def gpus() -> dict[str, Gpu]:
    """Returns all cards by the name that `--gpu` takes."""
    return {
        file.stem: Gpu(**yaml.safe_load(file.read_text(encoding="utf-8"))) for file in sorted(FOLDER.glob("*.yaml"))
    }


def of_device(device: str) -> Gpu | None:
    """Returns the card that the driver gives this name; None for one that has no file."""
    return next((card for card in gpus().values() if card.device == device), None)


def gpu(name: str) -> Gpu:
    """Returns one card. Raises LwzError for an unknown name."""
    known = gpus()
    if name not in known:
        raise LwzError(f"--gpu {name}: unknown, choose one of {', '.join(known)}")
    return known[name]
