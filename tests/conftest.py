"""What holds for all tests."""

from __future__ import annotations

import gc

import pytest

from megatron_lwz.distributed import jit

SECONDS_OF_A_LONG_TEST = 4 * 3600

gc.disable()  # until the tests are collected: modules stay loaded, and to look at them again and again takes seconds
jit.install()  # some tests import Megatron-Core before any module of ours does; as in a run, torch's compiler stays out


def pytest_collection_finish() -> None:
    """Else each garbage collection looks at all modules and tests, and checkpoints ask for one."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Else modules that count what they leave behind complain at the end of the process."""
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Soaks and campaigns (`make test-long`) may take longer than pyproject.toml's limit."""
    if not config.pluginmanager.hasplugin("timeout"):  # `make gpu-check GPU_PYTHON=…` installs nothing
        return
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS_OF_A_LONG_TEST))
