"""Types of command-line options: numbers within bounds. Each raises ArgumentTypeError, which argparse reports."""

from __future__ import annotations

import argparse
import math

from pydantic import TypeAdapter, ValidationError

from megatron_lwz.config.base import Variable


def positive(text: str) -> int:
    """Parses an option that must be at least 1."""
    return _at_least(1, text)


def positives(text: str) -> list[int]:
    """Parses an option of whole numbers of at least 1, with commas between them."""
    return [positive(part) for part in text.split(",")]


def not_negative(text: str) -> int:
    """Parses an option that must be at least 0."""
    return _at_least(0, text)


def positive_number(text: str) -> float:
    """Parses an option that must be a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a finite number above 0")
    return value


def not_negative_number(text: str) -> float:
    """Parses an option that must be a finite number of at least 0."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a finite number of at least 0")
    return value


def finite(text: str) -> float:
    """Parses an option that must be a finite number."""
    value = _number(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: must be a finite number")
    return value


def fraction(text: str) -> float:
    """Parses an option that must be above 0 and at most 1: a similarity, the mass of a nucleus."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and at most 1")
    return value


def share(text: str) -> float:
    """Parses an option that must be from 0 to below 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be from 0 to below 1")
    return value


def port(text: str) -> int:
    """Parses a port; 0 lets the system choose."""
    value = not_negative(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"{text}: must be at most 65535")
    return value


def steps(text: str) -> tuple[int, int]:
    """Parses a range of training steps, both ends included: `10-20`, or `10` for one step."""
    first, _, last = text.partition("-")
    try:
        return int(first), int(last or first)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no range of steps: write A-B, such as 10-20") from error


def variable(text: str) -> str:
    """Parses the name of an environment variable with a key. A key itself is refused, and not shown."""
    try:
        return TypeAdapter(Variable).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from None


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no whole number") from error
    if value < least:
        raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no number") from error
