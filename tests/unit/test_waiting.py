"""Waits end by an assertion that names what was waited for."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.support.waiting import until, wait_for


def test_a_wait_ends_with_its_condition_and_fails_by_name_after_its_limit():
    values = iter([0, [], "there"])
    wait_for(lambda: next(values), pause=0)
    asyncio.run(until(lambda: True))
    with pytest.raises(AssertionError, match=r"lambda: 1 == 2, seconds=0\.01.*not within 0\.01 s\n(.|\n)*said"):
        wait_for(lambda: 1 == 2, seconds=0.01, output=lambda: "said")
    with pytest.raises(AssertionError, match=r"the impossible: not within 0\.01 s"):
        asyncio.run(until(lambda: False, seconds=0.01, what="the impossible"))


def test_a_wait_does_not_outlive_its_process():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(AssertionError, match="never: the process ended with 3"):
        wait_for(lambda: False, what="never", process=process)
