#!/usr/bin/env python
"""Rehearses the GPU code without a GPU, and prints launches, waits for the GPU and peak memory of each rank.

    python tools/rehearse.py                     every layout of a small model, every stage (about two minutes)
    python tools/rehearse.py --full              also every config of examples/ at its true size (minutes)
    python tools/rehearse.py --full --page docs/benchmarks/rehearsal.md        the page
    python tools/rehearse.py --only "grpo PP2"   cases whose name contains a text

Needs a C++ compiler for the fake device (csrc/rehearsal). Exit status 1 if any case fails. What a rehearsal shows and
what it does not is described in megatron_lwz/rehearsal.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from megatron_lwz.config import load_config
from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.rehearsal.case import STAGES, Case, Report
from megatron_lwz.rehearsal.pool import rehearse
from megatron_lwz.rehearsal.small import LAYOUTS

ROOT = Path(__file__).resolve().parents[1]
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Example:
    """A config of examples/, and how its script starts it."""

    path: str
    stage: str
    world: int
    model: str
    """Preset with the numbers of the model that `model.hf` names, or a file that holds them."""

    def cases(self) -> list[Case]:
        """Returns the cases of its first and its last rank, with sequences as long as the config allows."""
        file = ROOT / "examples" / self.path
        if self.model.endswith(".yaml"):
            config = load_config(file)
            config = config.model_copy(update={"model": load_config(file.with_name(self.model)).model})
        else:
            config = load_config(file, ["model.hf=null", f"model.preset={self.model}"])
        longest = config.training.sequence_length
        if self.stage == "grpo":
            longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
        tree = config.model_dump(mode="json")
        return [
            Case(f"{self.path} rank {rank}", tree, self.stage, self.world, rank, sequence=longest)
            for rank in sorted({0, self.world - 1})
        ]


EXAMPLES = (
    *(Example(f"tiny_cpu/{name}.yaml", stage, 2, "model.yaml") for name, stage in (
        ("pretrain", "pretrain"), ("sft", "sft"), ("reward_model", "reward_model"), ("config", "grpo"),
    )),
    Example("qwen2.5_0.5b_cpu/config.yaml", "grpo", 1, "qwen2.5-0.5b"),
    Example("qwen2.5_0.5b_1gpu/config.yaml", "grpo", 1, "qwen2.5-0.5b"),
    Example("qwen2.5_7b_8xh100/config.yaml", "grpo", 4, "qwen2.5-7b"),
    *(Example(f"longwriter_zero_32b_64xh100/{name}.yaml", stage, world, "qwen2.5-32b") for name, stage, world in (
        ("config", "grpo", 32), ("1_base_nothink", "grpo", 32), ("2_base_think", "grpo", 32),
        ("5_longwriter_zero", "grpo", 32), ("4_pretrain", "pretrain", 64), ("sft", "sft", 64),
    )),
)  # fmt: skip
"""Every config of examples/ that trains. The chain's GRPO steps train on 4 nodes of 8 GPUs, its other steps on 8."""


def main() -> int:
    """Rehearses, prints the tables, and writes the page if one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also every config of examples/ at its true size")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument("--page", type=Path, help="write the result here, as Markdown")
    options = parser.parse_args()
    small = [layout.case(stage, rank) for layout in LAYOUTS for stage in STAGES for rank in layout.ranks]
    full = [case for example in EXAMPLES for case in example.cases()] if options.full else []
    try:
        reports = [run(chosen(cases, options.only)) for cases in (small, full)]
    except EnvironmentSetupError as error:
        print(error, file=sys.stderr)
        return 2
    failed = [report for found in reports for report in found if report.error]
    for report in failed:
        print(f"\n{report.name}\n{report.detail or report.error}", file=sys.stderr)
    text = page(*reports, command=shlex.join(["python", "tools/rehearse.py", *sys.argv[1:]]))
    if options.page:
        options.page.write_text(text, encoding="utf-8")
    print(text)
    return 1 if failed else 0


def chosen(cases: Iterable[Case], text: str | None) -> list[Case]:
    """Returns the cases whose name contains the text; all for None."""
    return [case for case in cases if text is None or text in case.name]


def run(cases: Sequence[Case]) -> list[Report]:
    """Rehearses the cases, with a line for each on stderr."""
    found = []
    for report in rehearse(cases) if cases else ():
        print(f"{report.seconds:7.1f} CPU s  {report.name}  {report.error or 'passed'}", file=sys.stderr)
        found.append(report)
    return found


def page(small: Sequence[Report], full: Sequence[Report], *, command: str) -> str:
    """Returns the page: the two tables, where the host waits, and what none of it shows."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout
    parts = [
        "# A rehearsal of the GPU code, without a GPU\n",
        INTRODUCTION.format(
            day=datetime.now(UTC).date(), commit=commit.strip(), command=command, python=platform.python_version(),
            torch=version("torch"), megatron=version("megatron-core"),
        ),
    ]  # fmt: skip
    if small:
        parts += [
            "## Layouts and stages\n",
            SMALL,
            table(small, MIB, "MiB"),
            "\n## Where the host waits\n",
            places(small),
        ]
    if full:
        parts += ["\n## The examples at their true sizes\n", FULL, table(full, GIB, "GiB"), phases(full)]
    return "\n".join([*parts, LIMITS, *left_out(small, full)])


def left_out(small: Sequence[Report], full: Sequence[Report]) -> list[str]:
    """Returns what this run was not asked to rehearse, as lines of the page."""
    done = {report.name for report in (*small, *full)}
    cases = {layout.case(stage, rank).name: stage for layout in LAYOUTS for stage in STAGES for rank in layout.ranks}
    stages = list(dict.fromkeys(stage for name, stage in cases.items() if name not in done))
    lines = [f"- {', '.join(stages)}: `tests/rehearsal` has each in one layout"] if stages else []
    if not {case.name for example in EXAMPLES for case in example.cases()} <= done:
        lines.append("- the examples at their true sizes")
    return ["Not rehearsed yet, or not in all layouts:\n", *lines, ""] if lines else []


def table(reports: Sequence[Report], unit: int, name: str) -> str:
    """Returns one row per rank."""
    lines = [
        f"| case | parameters | packs | launches | waits per pack | waits besides | peak {name} | host {name} | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        inside = report.waits_in("forward+backward", "log-probs", "forward")
        besides = report.waits_in("step", "export", "checkpoint")
        packs = report.micro_batches
        lines.append(
            f"| {report.name} | {report.parameters:,} | {packs or '–'} | {sum(report.launches.values())} "
            f"| {f'{inside / packs:g}' if packs else '–'} | {besides} | {report.peak / unit:.1f} "
            f"| {report.host_peak / unit:.1f} | {'passed' if report.error is None else f'**{report.error}**'} |"
        )
    return "\n".join(lines)


def places(reports: Sequence[Report]) -> str:
    """Returns the places that wait, by phase, with the largest count in any case."""
    found: Counter[tuple[str, str, str]] = Counter()
    for report in reports:
        here: Counter[tuple[str, str, str]] = Counter()
        for row in report.waits:
            here[row.phase, row.place, row.what] += row.count
        for key, count in here.items():
            found[key] = max(found[key], count)
    lines = ["| phase | place | what | at most |", "|---|---|---|---|"]
    rows = [(*key, count) for key, count in sorted(found.items())]
    return "\n".join([*lines, *(f"| {phase} | `{place}` | {what} | {count} |" for phase, place, what, count in rows)])


def phases(reports: Sequence[Report]) -> str:
    """Returns the peak of each phase in GiB, per case."""
    names = list(dict.fromkeys(name for report in reports for name in report.peaks if name != "start"))
    lines = ["", f"| peak GiB | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for report in reports:
        values = (f"{report.peaks[name] / GIB:.1f}" if name in report.peaks else "–" for name in names)
        lines.append(f"| {report.name} | {' | '.join(values)} |")
    return "\n".join(lines)


INTRODUCTION = """{day}, commit {commit}, Python {python}, torch {torch} (CPU), megatron-core {megatron}:

    {command}

**Nothing here ran on a GPU.** The product's own code ran as one rank of each layout on fake CUDA tensors, which have
shapes, dtypes and a device but no content, over a process group without other ranks. Every launch of a Triton kernel
was checked (tensors on the device, dtypes, sizes, strides, constants, grid) and not run.
"""
SMALL = """Models of 2 layers (VPP: 4), hidden size 256, bf16; two packs of 512 tokens per step. *Waits per pack* are in the
forward and backward passes: each stops the host until the GPU has caught up. *Waits besides* are once per step, export
or save. *Peak* is the highest allocated device memory of the rank, *host* that of copies in host memory.
"""
FULL = """The first and the last rank of each config, as its script starts it, with sequences as long as the config allows
and two packs per data-parallel rank. The configs for CPUs are rehearsed as if there was a GPU.
"""
LIMITS = """
## What this does not show

Time, values, and what several ranks do to each other. Memory: NCCL's buffers, the CUDA context, libraries' workspaces
and fragmentation come on top of the peak. Parking (`rollout.colocated`), the embedded engine's decoder, flash-attn and the
CUDA epilogue do not run on fake tensors and are not rehearsed.
"""

if __name__ == "__main__":
    sys.exit(main())
