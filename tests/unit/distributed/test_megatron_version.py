"""What differs between releases of Megatron-Core is decided in one module, by the installed release."""

from __future__ import annotations

import logging
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from megatron_lwz.distributed import megatron_version, platform
from megatron_lwz.errors import EnvironmentSetupError

PACKAGE = Path(megatron_version.__file__).parents[1]


def test_installed_release_is_supported() -> None:
    assert version("megatron-core").startswith("{}.{}.".format(*megatron_version.release()))
    megatron_version.check()


def test_another_release_is_refused_before_anything_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron_version, "release", lambda: (0, 17))
    with pytest.raises(EnvironmentSetupError, match=r"megatron-core 0\.17: not supported, install 0\.16 or 0\.19$"):
        platform.install.__wrapped__()


def test_requirements_of_the_package_name_the_supported_releases() -> None:
    (bound,) = re.findall(r'"megatron-core(.+)"', (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    first, last = megatron_version.SUPPORTED[0], megatron_version.SUPPORTED[-1]
    between = [(0, minor) for minor in range(first[1], last[1]) if (0, minor) not in megatron_version.SUPPORTED]
    excluded = "".join(f",!={major}.{minor}.*" for major, minor in between)
    assert bound == f">={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}{excluded}"


def test_no_other_module_asks_for_the_release() -> None:
    asks = re.compile(r"megatron\.core\.__version__|package_info|is_te_min_version|get_mcore_version")
    files = [path for path in PACKAGE.rglob("*.py") if asks.search(path.read_text(encoding="utf-8"))]
    assert [path.name for path in files] == ["megatron_version.py"]


@pytest.mark.parametrize("name", megatron_version._NOTICES)
def test_only_the_named_notices_of_a_newer_release_are_hidden(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(megatron_version, "release", lambda: (0, 19))
    logger = logging.getLogger(name)
    before = list(logger.filters)
    megatron_version.hide_notices()
    logger.warning("so: %s, they say", megatron_version._NOTICES[name])
    logger.warning("another warning")
    logger.filters[:] = before
    assert [record.getMessage() for record in caplog.records] == ["another warning"]
