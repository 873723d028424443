#!/usr/bin/env python
"""Rehearses the GPU code without a GPU, and prints launches, waits for the GPU and peak memory of each rank.

    python tools/rehearse.py                     every layout of a small model, every stage (about two minutes)
    python tools/rehearse.py --full              also every config of examples/ at its true size, and Transformer Engine
    python tools/rehearse.py --part examples     one part: layouts, examples or engine
    python tools/rehearse.py --full --page docs/benchmarks/rehearsal.md        the page, and rehearsal.json beside it
    python tools/rehearse.py --only "grpo PP2"   cases whose name contains a text
    python tools/rehearse.py --part engine --engine FOLDER    with the Transformer Engine in another folder

Needs a C++ compiler for the fake device (rehearsal/fake_cuda.cpp), and for the engine the Python of Transformer Engine, which `make
setup` installs. Exit status 1 if any case fails. What a rehearsal shows and what it does not is described in megatron_lwz/rehearsal.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path

from rehearsal_examples import example_cases
from rehearsal_page import LIMITS, PARTS, STAMP, TITLE, merge, result

from megatron_lwz.errors import EnvironmentSetupError
from megatron_lwz.rehearsal.case import STAGES, Case, Report
from megatron_lwz.rehearsal.pool import ENGINE, rehearse
from megatron_lwz.rehearsal.small import BY_NAME, DECODINGS, LAYOUTS

ROOT = Path(__file__).resolve().parents[1]
ENGINE_STAGES = ("grpo", "sft", "pretrain", "score", "checkpoint")
ENGINE_LAYOUTS = ("one GPU", "TP2", "PP2", "CP2")


def main() -> int:
    """Rehearses, prints the tables, and writes the page if one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all parts")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="only this part; may be given again")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument("--page", type=Path, help="write the parts into this Markdown page, and into JSON beside it")
    parser.add_argument(
        "--engine", metavar="FOLDER", type=Path, default=ENGINE, help="pip install --no-deps --target FOLDER"
    )
    options = parser.parse_args()
    if options.page and options.only:
        parser.error("--only leaves cases out: a page needs whole parts, use --part")
    names = list(PARTS) if options.full else options.part or ["layouts"]
    if "engine" in names and not (options.engine / "transformer_engine").is_dir():
        print(f"no Transformer Engine in {options.engine}: `make setup` puts it into {ENGINE}", file=sys.stderr)
        return 2
    try:
        found = {name: run(name, options.only, options.engine) for name in names}
    except EnvironmentSetupError as error:
        print(error, file=sys.stderr)
        return 2
    stamp = described(options.engine)
    bodies = {PARTS[name].heading: section(name, found[name], stamp) for name in names}
    if options.page:
        write(options.page, bodies, found, stamp)
    print("\n\n".join(f"## {heading}\n\n{body}" for heading, body in bodies.items()))
    failed = [report for reports in found.values() for report in reports if result(report) != "passed"]
    for report in failed:
        print(f"\n{report.name}\n{report.detail or result(report)}", file=sys.stderr)
    return 1 if failed else 0


def cases(part: str) -> list[Case]:
    """Returns the cases of a part of the page."""
    if part == "examples":
        return example_cases()
    if part == "engine":
        layouts = [BY_NAME[name] for name in ENGINE_LAYOUTS]
        return [layout.case(stage, rank) for layout in layouts for stage in ENGINE_STAGES for rank in layout.ranks]
    stages = [stage for stage in STAGES if stage != "decode"]
    trained = [layout.case(stage, rank) for layout in LAYOUTS for stage in stages for rank in layout.ranks]
    return [*trained, *DECODINGS]


def run(part: str, only: str | None, engine: Path) -> list[Report]:
    """Rehearses the cases of a part whose name contains a text, with a line for each on stderr."""
    chosen = [case for case in cases(part) if only is None or only in case.name]
    found = []
    for report in rehearse(chosen, engine=engine if part == "engine" else None) if chosen else ():
        print(f"{report.seconds:7.1f} CPU s  {report.name}  {result(report)}", file=sys.stderr)
        found.append(report)
    return found


def section(part: str, reports: Sequence[Report], stamp: dict[str, str]) -> str:
    """Returns a part of the page: of which commit it is, its tables, and the cases that it lacks."""
    done = {report.name for report in reports}
    missing = [f"- {case.name}" for case in cases(part) if case.name not in done]
    lacks = "\n".join(["", "", "Not rehearsed:", "", *missing]) if missing else ""
    besides = f", transformer-engine {stamp['engine']}" if part == "engine" else ""
    return STAMP.format(part=part, besides=besides, **stamp) + PARTS[part].body(reports) + lacks


def described(engine: Path) -> dict[str, str]:
    """Returns what was rehearsed: day, commit and versions; `engine` is the one of Transformer Engine's Python."""
    found = next(iter(distributions(name="transformer-engine", path=[str(engine)])), None)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout
    return {
        "day": str(datetime.now(UTC).date()),
        "commit": commit.strip(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "megatron": version("megatron-core"),
        "engine": found.version if found else "not there",
    }


def write(page: Path, bodies: dict[str, str], found: Mapping[str, Sequence[Report]], stamp: dict[str, str]) -> None:
    """Puts the parts that were rehearsed into the page and its JSON; the other parts stay as they are there."""
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    order = [part.heading for part in PARTS.values()]
    beside = page.with_suffix(".json")
    title = TITLE.format(page=page, json=beside.name)
    page.write_text(merge(before, bodies, order, title, LIMITS), encoding="utf-8")
    values = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    for name, reports in found.items():
        kept = [{key: value for key, value in report.as_json().items() if key != "detail"} for report in reports]
        values[name] = {**stamp, "cases": kept}
    beside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
