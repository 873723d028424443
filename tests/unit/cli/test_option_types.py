"""Bounds of options: what is taken, and the one line that refuses the rest."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from megatron_lwz.cli import option_types


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (option_types.positive, "1", 1),
        (option_types.not_negative, "0", 0),
        (option_types.positive_number, "1e-3", 0.001),
        (option_types.not_negative_number, "0", 0.0),
        (option_types.finite, "-2.5", -2.5),
        (option_types.fraction, "1", 1.0),
        (option_types.share, "0", 0.0),
        (option_types.port, "65535", 65535),
    ],
)
def test_what_lies_within_the_bounds_is_taken(kind: Callable[[str], float], text: str, value: float) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (option_types.positive, "0", "0: must be at least 1"),
        (option_types.positive, "1.5", "'1.5' is no whole number"),
        (option_types.not_negative, "-1", "-1: must be at least 0"),
        (option_types.positive_number, "0", "0: must be a finite number above 0"),
        (option_types.positive_number, "inf", "inf: must be a finite number above 0"),
        (option_types.positive_number, "much", "'much' is no number"),
        (option_types.not_negative_number, "-0.1", "-0.1: must be a finite number of at least 0"),
        (option_types.not_negative_number, "nan", "nan: must be a finite number of at least 0"),
        (option_types.finite, "-inf", "-inf: must be a finite number"),
        (option_types.fraction, "0", "0: must be above 0 and at most 1"),
        (option_types.share, "1", "1: must be from 0 to below 1"),
        (option_types.port, "65536", "65536: must be at most 65535"),
    ],
)
def test_what_does_not_is_refused_in_one_line(kind: Callable[[str], float], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{message}$"):
        kind(text)
