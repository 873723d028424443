"""All that differs between the supported releases of Megatron-Core, one named function each.

Elsewhere the code is the same for every release. Python 3.11 gets 0.16, the last release for it; from Python 3.12 on it
gets 0.19. `make test-stacks` runs the tests that need Megatron-Core on both.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_lwz.distributed import jit
from megatron_lwz.errors import EnvironmentSetupError

jit.install()  # before Megatron-Core is imported

SUPPORTED = ((0, 16), (0, 19))
"""The minor releases that the tests ran on; platform.py's tables hold for these."""

_NOTICES = {
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    "megatron.core.dist_checkpointing.strategies.common": "load_common is deprecated",
    "megatron.core.distributed.distributed_data_parallel": "full_param_layout not provided",
}
"""Logger of Megatron-Core 0.19 → the warning to its callers that says nothing to the user of this project."""


@functools.cache
def release() -> tuple[int, int]:
    """Returns the installed minor release, e.g. (0, 16)."""
    core = importlib.import_module("megatron.core.package_info")
    return core.MAJOR, core.MINOR


def check() -> None:
    """Raises EnvironmentSetupError for a release outside SUPPORTED."""
    if release() not in SUPPORTED:
        found, *tested = (f"{major}.{minor}" for major, minor in (release(), *SUPPORTED))
        raise EnvironmentSetupError(f"megatron-core {found}: not supported, install {' or '.join(tested)}")


def unused_modules() -> tuple[str, ...]:
    """Returns this release's own part of platform.UNUSED_MODULES."""
    if release() >= (0, 19):
        return ("optimizer.layer_wise_optimizer", "transformer.cuda_graphs")
    return ("ssm.",)


def set_activation(layer: Any, function: Callable[[Tensor], Tensor]) -> None:
    """Puts the activation of the feed-forward block, [..., 2F] → [..., F], into a layer's submodules.

    0.16 takes a function. 0.19 takes the builder of a module, and binds the block's own submodules to a builder, too.
    """
    mlp_submodules(layer).activation_func = (
        functools.partial(_Activation, function) if release() >= (0, 19) else function
    )


def mlp_submodules(layer: Any) -> Any:
    """Returns the submodules of the feed-forward block in a layer's submodules."""
    return layer.mlp.keywords["submodules"] if release() >= (0, 19) else layer.mlp.submodules


class _Activation(torch.nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor], **_: Any) -> None:
        super().__init__()
        self._function = function

    def forward(self, gate_and_up: Tensor) -> Tensor:
        return self._function(gate_and_up)


def forget_checkpoint_metadata() -> None:
    """Makes the next load read a checkpoint's metadata anew.

    From 0.19 on Megatron-Core keeps it per path for the life of the process, also when the folder has been replaced.
    """
    if release() >= (0, 19):
        reader = importlib.import_module(
            "megatron.core.dist_checkpointing.strategies.cached_metadata_filesystem_reader"
        )
        reader.CachedMetadataFileSystemReader.clear_metadata_cache()


def hide_notices() -> None:
    """Keeps the warnings of _NOTICES, which 0.19 logs for every model, out of the log. Idempotent."""
    if release() >= (0, 19):
        for name in _NOTICES:
            logging.getLogger(name).addFilter(_is_no_notice)


def _is_no_notice(record: logging.LogRecord) -> bool:
    return _NOTICES[record.name] not in record.getMessage()
