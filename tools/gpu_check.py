"""Checks the kernels and the policy on a GPU, and measures them: what `make gpu-check` runs.

    python tools/gpu_check.py [--part build,tests,numerics,ratios,step] [--device cpu] [--results DIR] [--wheels DIR]

It first prints what it needs and what of that this machine has. Each part is a process with a time limit of its own;
together they end within 8 minutes. The results are written after every part, failed or not, as a page and as JSON.
Exit status: 0 if all parts passed, 1 if one failed or took too long, 2 if something needed is missing. With
`--device cpu` every part runs at tiny size without a GPU, to check the check.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_needs
from gpu_findings import Table
from gpu_page import Results

ROOT = gpu_needs.ROOT
LOG_LINES = 30
REHEARSAL_PATIENCE = 10


@dataclasses.dataclass(frozen=True)
class Part:
    """One part: what it shows, and the seconds after which it is ended."""

    name: str
    seconds: int
    shows: str

    def limit(self, device: str) -> int:
        """Returns the time limit, seconds. A rehearsal's CPU may be slow and busy."""
        return self.seconds * (REHEARSAL_PATIENCE if device == "cpu" else 1)


PARTS = (
    Part("build", 40, "nvcc compiles kernels/cuda"),
    Part("tests", 140, "tests/gpu"),
    Part("numerics", 60, "every kernel and a policy of two layers, against the CPU in fp32"),
    Part("ratios", 80, "time and memory beside bare matrix products, plain torch and other libraries"),
    Part("step", 160, "one GRPO step of a random 0.5B policy with the embedded engine: time and memory"),
)
"""In the order in which they run. Their limits add up to 8 minutes."""


def main() -> int:
    """Prints what is needed, runs the parts, writes the results. Returns the exit status."""
    options = parse()
    site = gpu_needs.unpack(options.wheels)
    sys.path[:0] = [str(site)] if site else []
    environment = gpu_needs.environment_for(site)
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    about = gpu_needs.machine(environment)
    needs = gpu_needs.needs(options.device, about, work, environment)
    show_needs(needs, options)
    missing = [need for need in needs if need.required and not need.found]
    if missing:
        print(f"error: {missing[0].name}: {missing[0].advice}", file=sys.stderr)
        return 2
    listed = [dataclasses.asdict(need) for need in needs]
    results = Results(options.results, device=options.device, needs=listed)
    failed = []
    for part in options.parts:
        print(f"\n{part.name}: {part.shows} (at most {part.limit(options.device)} s)", flush=True)
        result = run(part, options.device, work, environment)
        results.put(part.name, result | stamp(about, options.device))
        print(f"{part.name}: {result['status']} after {result['seconds']} s", flush=True)
        if result["status"] in ("failed", "out of time"):
            failed.append(part.name)
            print("\n".join([*(f"  {text}" for text in result["failures"]), *result["log"]]), flush=True)
    print(f"\npage: {results.page}\nfigures: {results.json}")
    if failed:
        print(f"error: {', '.join(failed)} failed; once more: make gpu-check PART={','.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(part.name for part in PARTS)
    parser.add_argument("--part", default="", help=f"only these, comma-separated; default: {names}")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal without a GPU")
    parser.add_argument("--results", type=Path, help="folder; default: docs/benchmarks, for a rehearsal --work")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-check", help="folder for logs and weights")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build" / "gpu-wheels", help="packages brought along")
    options = parser.parse_args()
    asked = [name for name in options.part.split(",") if name]
    unknown = set(asked) - {part.name for part in PARTS}
    if unknown:
        parser.error(f"--part {', '.join(sorted(unknown))} is unknown: choose from {names}")
    options.parts = [part for part in PARTS if not asked or part.name in asked]
    if options.results is None:
        options.results = ROOT / "docs" / "benchmarks" if options.device == "cuda" else options.work
    return options


def show_needs(needs: Sequence[gpu_needs.Need], options: argparse.Namespace) -> None:
    """Prints what the check needs and what this machine has of it."""
    limit = sum(part.limit(options.device) for part in options.parts)
    names = ", ".join(part.name for part in options.parts)
    print(f"GPU check on {options.device}: {names}; at most {limit} s; results in {options.results}")
    width = max(len(need.name) for need in needs)
    for need in needs:
        mark = "ok " if need.found else "MISSING" if need.required else "-  "
        print(f"  {mark} {need.name:<{width}} {need.found or need.advice}", flush=True)


def run(part: Part, device: str, work: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Runs one part to its end or its time limit, and returns its result. Ends every process that it started."""
    found, log = work / f"{part.name}.json", work / f"{part.name}.log"
    found.unlink(missing_ok=True)
    result: dict[str, Any] = {"tables": [], "failures": [], "figures": {}, "log": [], "limit": part.limit(device)}
    if part.name == "build" and shutil.which("nvcc", path=environment["PATH"]) is None:
        return result | {"status": "not run: no nvcc", "seconds": 0}
    begun = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command(part, device, work, found), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = "failed" if process.wait(part.limit(device)) else "passed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            end_group(process)
    result |= {"status": status, "seconds": round(time.monotonic() - begun, 1)}
    if part.name == "tests":
        result["tables"] = [dataclasses.asdict(counted(work / "tests.xml", log))]
    elif found.exists():
        result |= json.loads(found.read_text(encoding="utf-8"))
    result["log"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return result


def command(part: Part, device: str, work: Path, found: Path) -> list[str]:
    """Returns the command line of a part."""
    python = [sys.executable, "-u"]
    if part.name == "build":
        beside = ["--library", str(work / "_cuda_sm90.so")] if device == "cpu" else []
        return [*python, "tools/build_cuda.py", *beside]
    if part.name == "tests":
        report = work / "tests.xml"
        report.unlink(missing_ok=True)
        only = ["--collect-only", "-q"] if device == "cpu" else ["--junitxml", str(report)]
        return [*python, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", *only, "tests/gpu"]
    return [*python, f"tools/gpu_{part.name}.py", "--device", device, "--json", str(found)]


def counted(report: Path, log: Path) -> Table:
    """Returns the number of tests per file: from pytest's report, or of those only collected, from its output."""
    if not report.exists():
        lines = log.read_text(encoding="utf-8", errors="replace")
        rows = re.findall(r"^(tests/gpu/\S+): (\d+)$", lines, re.MULTILINE)
        return Table("Tests", ["file", "collected, not run"], rows)
    counts: dict[str, list[int]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        row = counts.setdefault(case.get("classname", "?").removeprefix("tests.gpu.").split(".")[0], [0, 0, 0])
        kinds = {child.tag for child in case}
        row[1 if kinds & {"failure", "error"} else 2 if "skipped" in kinds else 0] += 1
    return Table("Tests", ["file", "passed", "failed", "skipped"], [[k, *map(str, v)] for k, v in counts.items()])


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the process group, and waits for its first process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stamp(about: dict[str, Any], device: str) -> dict[str, str]:
    """Returns where and when a result was made."""
    git = shutil.which("git")
    asked = [git, "rev-parse", "--short", "HEAD"] if git else [sys.executable, "-c", ""]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "machine": about["gpu"] if device == "cuda" else "CPU, rehearsal",
        "torch": about["torch"],
        "date": datetime.date.today().isoformat(),
        "commit": commit or "unknown",
    }


if __name__ == "__main__":
    sys.exit(main())
