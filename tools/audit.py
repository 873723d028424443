"""Asks the vulnerability database for the pinned versions: `make audit`. Exit 0: none known, 1: some are, 2: not checked.

pip-audit is installed from PyPI into build/audit, outside the environment of the project.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build" / "audit"
TOOL = "pip-audit==2.10.1"
PINS = ("constraints.txt",)
SECONDS = 600


def main() -> int:
    """Prints one line per known vulnerability, or why nothing was checked."""
    try:
        program = _installed()
        found = [entry for name in PINS for entry in _ask(program, ROOT / "requirements" / name)]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        print(f"audit: NOT CHECKED: {(said.strip().splitlines() or ['no answer'])[-1][:300]}", file=sys.stderr)
        return 2
    bad = [(entry, fault) for entry in found for fault in entry.get("vulns", [])]
    for entry, fault in bad:
        fixed = ", ".join(fault["fix_versions"]) or "no release"
        print(f"{entry['name']} {entry['version']}: {fault['id']} {fault.get('aliases', [])}: fixed in {fixed}")
    skipped = [entry for entry in found if "skip_reason" in entry]
    if skipped:
        first = f"{skipped[0]['name']}: {skipped[0]['skip_reason']}"
        print(f"audit: NOT CHECKED: {len(skipped)} of {len(found)} pinned packages ({first})", file=sys.stderr)
    print(f"audit: {len(found) - len(skipped)} pinned packages checked, {len(bad)} known vulnerabilities")
    return 1 if bad else 2 if skipped else 0


def _installed() -> Path:
    program = HOME / "bin" / "pip-audit"
    if not program.exists():
        venv.create(HOME, with_pip=True)
        _run([str(HOME / "bin" / "pip"), "install", "--quiet", TOOL])
    return program


def _ask(program: Path, pins: Path) -> list[dict]:
    """Returns pip-audit's entries. It exits with 1 both for vulnerabilities and for a database out of reach."""
    command = [str(program), "--requirement", str(pins), "--no-deps", "--disable-pip", "--format", "json"]
    done = _run([*command, "--progress-spinner", "off"], accepted=(0, 1))
    if not done.stdout.strip():
        raise ValueError(done.stderr)
    answer: list[dict] = json.loads(done.stdout)["dependencies"]
    return answer


def _run(command: list[str], accepted: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode not in accepted:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done


if __name__ == "__main__":
    sys.exit(main())
