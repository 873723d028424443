"""`--profile steps=3-5` and `--profile steps=3-5,ranks=0,3` of the training stages; a space may stand before `ranks`."""

from __future__ import annotations

import argparse
import re

from megatron_lwz.cli import common
from megatron_lwz.config import Config
from megatron_lwz.distributed import environment, platform
from megatron_lwz.profiling.spans import Window

_EXPECTED = "expected steps=FIRST-LAST, as in steps=3-5 or steps=3, and for other ranks than 0 ranks=0,3"
_PART = re.compile(r"(steps|ranks)=(.*)", re.DOTALL)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--profile`."""
    parser.add_argument(
        "--profile",
        metavar="steps=FIRST-LAST[,ranks=0,3]",
        help="record these steps: a trace for ui.perfetto.dev, figures for the report (docs/profiling.md)",
    )


def take(options: argparse.Namespace) -> str | None:
    """Returns the value of `--profile`, with `steps=…` and `ranks=…` from the overrides: no section has these names."""
    if options.profile is None:
        return None
    ours = [text for text in options.overrides if _PART.fullmatch(text)]
    options.overrides = [text for text in options.overrides if text not in ours]
    return ",".join([options.profile, *ours])


def window(text: str | None, world: int) -> Window | None:
    """Returns what `--profile` asks for, None without it. Raises UsageError."""
    if text is None:
        return None
    found: dict[str, str] = {}
    for part in re.split(r",(?=[a-z]+=)", text):
        match = _PART.fullmatch(part)
        if match is None or match[1] in found:
            raise common.UsageError(f"--profile {text}: {_EXPECTED}")
        found[match[1]] = match[2]
    if "steps" not in found:
        raise common.UsageError(f"--profile {text}: names no steps: {_EXPECTED}")
    first, last = _steps(found["steps"])
    return Window(first, last, _ranks(found.get("ranks", "0"), world))


def _steps(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text)
    if match is None:
        raise common.UsageError(f"--profile steps={text}: {_EXPECTED}")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last:
        raise common.UsageError(
            f"--profile steps={text}: expected steps=FIRST-LAST with 1 <= FIRST <= LAST, as in steps=3-5"
        )
    return first, last


def _ranks(text: str, world: int) -> tuple[int, ...]:
    names = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,9}", name) for name in names) or max(map(int, names)) >= world:
        raise common.UsageError(
            f"--profile ranks={text}: expected numbers from 0 to {world - 1}, as in ranks=0: "
            f"torchrun started {world} rank{'s' if world > 1 else ''}"
        )
    return tuple(sorted(set(map(int, names))))


def with_peak(config: Config) -> Config:
    """Returns the config with `training.peak_flops` of this rank's GPU, if it is a card of the planner and the run uses bf16.

    A value that is set stays.
    """
    if config.training.peak_flops is not None or config.training.precision != "bf16" or not platform.has_gpu():
        return config
    from megatron_lwz.planner.hardware import of_device  # a run on CPUs does not read the cards

    card = of_device(platform.device_name(environment.local_rank()))
    if card is None:
        return config
    training = config.training.model_copy(update={"peak_flops": card.bf16_tflops * 1e12})
    return config.model_copy(update={"training": training})
