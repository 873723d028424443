"""A small copy of mozhu621/LongGenBench in the public form, with other words."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

EVAL = """from vllm import LLM

def create_prompts(checks, type_to_block):
    for identifier, event_desc in checks.items():
        prompt = f"Entry: " + type_to_block[identifier] + f"### Is {event_desc} in it? Say 'yes' or 'no'."
"""
ENTRIES = 16


def row(number: int) -> dict[str, Any]:
    """A prompt with the public columns: 16 weeks, a feast in week 2, a journey in 9 and 10, a lesson every 5 weeks."""
    return {
        "prompt": f"Write the diary of person {number}. *** started ***\n#*# Week 1:",
        "checks_once": {"2": "harvest feast"},
        "checks_range": {"9": "journey to Paris", "10": "journey to Paris"},
        "checks_periodic": {str(week): "guitar lesson" for week in (5, 10, 15)},
        "type": "Week",
        "prefix": "#*# Week 1:",
        "number": ENTRIES,
    }


def write_dataset(root: Path, prompts: int = 12) -> Path:
    """The dataset, with the judge's script where the repository has it."""
    (root / "Dataset").mkdir(parents=True)
    (root / "Evalution").mkdir()
    (root / "Evalution" / "eval.py").write_text(EVAL, encoding="utf-8")
    path = root / "Dataset" / "Dataset_short.json"
    path.write_text(json.dumps([row(number) for number in range(prompts)], indent=1), encoding="utf-8")
    return path


def response(number: int, *, written: int = ENTRIES, kept: Collection[str] = ("feast", "Paris", "guitar")) -> str:
    """The document of a prompt: so many entries, and of what was asked only what holds a word of `kept`."""
    given = row(number)
    found = []
    for week in range(1, written + 1):
        events = [given[key].get(str(week)) for key in ("checks_once", "checks_range", "checks_periodic")]
        told = [event for event in events if event and any(word in event for word in kept)]
        begin = "" if week == 1 else f"#*# Week {week}:"
        found.append(f"{begin} We had {', '.join(told) or 'rain'}.")
    return "\n".join(found)
