"""The results of `make gpu-check`: one JSON file for programs and one page, both written after every part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

REHEARSAL = "**A rehearsal on the CPU at tiny size: nothing on this page was measured on a GPU.**"
ORDER = ("status", "seconds", "limit", "machine", "torch", "date", "commit")


class Results:
    """`gpu_check.json` and `gpu_check.md` in a folder. Parts that are not run again keep their earlier results."""

    def __init__(self, folder: Path, *, device: str, needs: Sequence[Mapping[str, Any]]) -> None:
        self.json, self.page = folder / "gpu_check.json", folder / "gpu_check.md"
        earlier = json.loads(self.json.read_text(encoding="utf-8")) if self.json.exists() else {}
        kept = earlier.get("parts", {}) if earlier.get("device") == device else {}
        self._made: dict[str, Any] = {"device": device, "needs": list(needs), "parts": kept}
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        """Replaces the part's result and writes both files."""
        self._made["parts"][name] = dict(result)
        self.json.write_text(json.dumps(self._made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self.page.write_text(page(self._made), encoding="utf-8")


def page(made: Mapping[str, Any]) -> str:
    """Returns the page of all parts."""
    lines = ["# GPU check", ""]
    if made["device"] == "cpu":
        lines += [REHEARSAL, ""]
    lines += ["What `make gpu-check` found. Each row of this table says when and where its part ran.", ""]
    parts: Mapping[str, Mapping[str, Any]] = made["parts"]
    lines += [*table(["part", *ORDER], [[name, *(part[key] for key in ORDER)] for name, part in parts.items()]), ""]
    for name, part in parts.items():
        lines += [f"## {name}", ""]
        lines += [f"- failed: {failure}" for failure in part["failures"]] + [""] * bool(part["failures"])
        for found in part["tables"]:
            lines += [f"### {found['title']}", "", *([found["note"], ""] if found["note"] else [])]
            lines += [*table(found["columns"], found["rows"]), ""]
        if part["log"] and part["status"] != "passed":
            lines += ["The end of its output:", "", "```", *part["log"], "```", ""]
    needed = [[need["name"], need["found"] or need["advice"]] for need in made["needs"]]
    return "\n".join([*lines, "## The machine", "", *table(["what", "found"], needed), ""])


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    heads = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return heads + ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
