"""Selects the implementation of our ops for this machine, once per run."""

from __future__ import annotations

import logging

import torch

from megatron_lwz.config.sections import KernelsSection
from megatron_lwz.errors import ConfigError
from megatron_lwz.kernels.linear_logprob import implementations
from megatron_lwz.kernels.settings import Settings, put
from megatron_lwz.units import MIB

logger = logging.getLogger(__name__)

BACKENDS = ("reference", *implementations.NAMES)
"""All values of `kernels.backend` except `auto`."""


def select(backend: str) -> str:
    """Returns the implementation for `backend` ("auto" or a name). Raises ConfigError for one that cannot run here."""
    if backend == "auto":
        return _best()
    if backend not in BACKENDS:
        raise ConfigError("kernels.backend", backend, f"is unknown: choose auto, {', '.join(BACKENDS)}")
    reason = None if backend == "reference" else implementations.available(backend)
    if reason is not None:
        raise ConfigError(
            "kernels.backend", backend, f"cannot run here ({reason}): choose auto or {', '.join(usable())}"
        )
    return backend


def usable() -> list[str]:
    """Returns the names that can run on this machine."""
    return ["reference", *(name for name in implementations.NAMES if implementations.available(name) is None)]


def set_backend(section: KernelsSection) -> str:
    """Resolves `kernels.backend` for the rest of the process, logs the choice and returns it. Raises ConfigError."""
    chosen = Settings(
        select(section.backend), section.workspace_mib * MIB, section.cache_mib * MIB, section.cross_check_interval
    )
    put(chosen)
    logger.info("kernels: %s (asked: %s), workspace %d MiB", chosen.backend, section.backend, section.workspace_mib)
    return chosen.backend


def _best() -> str:
    """Returns Triton on a GPU, C++ on a CPU. If it cannot run, returns plain torch and logs the reason."""
    wanted = "triton" if torch.cuda.is_available() else "cpp"
    reason = implementations.available(wanted)
    if reason is None:
        return wanted
    logger.info("kernels: %s cannot run here (%s), so plain torch does its work", wanted, reason)
    return "torch"
