"""`lwz doctor`: looks whether this machine can run the stages, and says what to do where it cannot."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from rich.text import Text

from megatron_lwz.cli import common
from megatron_lwz.cli import doctor_checks as checks
from megatron_lwz.errors import EnvironmentSetupError, printable

_STYLES = {"ok": "green", "note": "yellow", "fault": "bold red"}


def main(argv: Sequence[str]) -> None:
    """Prints every finding. Raises EnvironmentSetupError if one is a fault."""
    parser = common.Parser(prog="lwz doctor", description="Look whether this machine can run the stages.")
    parser.add_argument("--dir", type=Path, default=Path(), help="where run folders will lie; default: this folder")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    asked = parser.parse_args(argv)
    if not asked.dir.is_dir():
        raise common.UsageError(f"--dir {asked.dir}: no such folder")
    faults = []
    # Each is looked up while the ones before it are shown: torch takes seconds to import.
    for finding in chain(checks.python(), checks.gpus(), checks.processor(), checks.room(asked.dir), checks.system()):
        faults += [finding.name] * (finding.state == "fault")
        _show(finding, as_json=asked.json)
    if faults:
        raise EnvironmentSetupError(f"this machine is not ready: {', '.join(faults)}; follow the -> after each fault")


def _show(finding: checks.Finding, *, as_json: bool) -> None:
    console = common.console()
    if as_json:
        console.print(json.dumps(asdict(finding), ensure_ascii=False), markup=False)
        return
    found = f"{finding.name:<20} {printable(finding.found)}"
    console.print(Text.assemble((f"{finding.state:<6}", _STYLES[finding.state]), found))
    if finding.advice:
        console.print(f"{'':<26} -> {finding.advice}", markup=False)


if __name__ == "__main__":
    sys.exit(common.run(main))
