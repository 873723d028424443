#!/usr/bin/env python
"""Writes docs/configuration.md from the config classes: `python tools/make_config_docs.py`. A test keeps it up to date."""

from __future__ import annotations

import typing
from pathlib import Path

from megatron_lwz.config import KEPT
from megatron_lwz.config.kept import ALL
from megatron_lwz.config.reference import REQUIRED, Setting, Settings, all_sections

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEAD = """# Configuration

<!-- Written by tools/make_config_docs.py from megatron_lwz/config. Do not edit. -->

One YAML file serves every stage; a stage reads the sections it needs. What is set for other stages is named in one line when a
run begins and by `lwz config show`, so that a setting in the wrong place is seen. Precedence: the defaults below, then the file named by
a top-level `base:` (relative to the file), then the file itself, then `section.key=value` on the command line.
`${config_dir}` is the folder of the YAML file. Unknown keys and wrong types are errors: one line, exit status 2.

A single value may stand for a list of one. Lists of addresses, paths, functions, numbers and fixed words may also be one text
with commas (`rollout.urls=http://a:8000,http://b:8000`); texts such as `rollout.stop` are not split. `~` in a path is the home
folder.

`lwz config explain rollout.max_staleness` says the same in the terminal, also for a section (`rollout`) or a word (`staleness`).
`lwz config show CONFIG [--changed]` shows all settings of a config or run folder, or those that are not the default;
`lwz config diff OLD NEW` the keys in which two differ. `lwz config schema > lwz.schema.json` writes a JSON schema: with
`# yaml-language-server: $schema=lwz.schema.json` as the first line of a YAML file, editors complete and check its keys.

Grades after a source: **A** a primary artefact, **B** two or more independent write-ups, **C** one write-up.
"open" means that the paper does not say; the default is our choice, see [recipe.md](recipe.md).
"""

KEPT_HEAD = """
### Kept keys

A run that has a checkpoint or a journal keeps these keys from start to start. A start that changes one ends with one line
and changes nothing, unless `run.allow_change` names the key or its section. All other keys may change. Every changed key is
shown, old -> new, and recorded in `attempts.jsonl` ([rollouts.md](rollouts.md#one-start-at-a-time)).
"""


def render() -> str:
    """Returns the whole page."""
    parts = [HEAD]
    for section in all_sections():
        parts += _section(section)
        if section.key == "run":
            parts += _kept()
    return "\n".join(parts) + "\n"


def _kept() -> list[str]:
    rows = [
        f"| `{key}` | {'all' if kept.stages == ALL else ', '.join(kept.stages)} | {_cell(kept.why)} |"
        for key, kept in KEPT.items()
    ]
    return [KEPT_HEAD, "| key | stages | what depends on it |", "|---|---|---|", *rows]


def _section(section: Settings) -> list[str]:
    rows = [f"| `{s.name}` | {_type(s)} | {_default(s.default)} | {_cell(s.meaning)} |" for s in section.settings]
    return [
        f"\n## {section.key}\n",
        section.meaning,
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
        *rows,
    ]


def _type(setting: Setting) -> str:
    return " \\| ".join(f"`{choice}`" for choice in setting.choices) or setting.kind


def _default(value: typing.Any) -> str:
    if value is REQUIRED:
        return "required"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f"`{_cell(item)}`" for item in value) + "]"
    return f"`{value}`" if isinstance(value, str) and value else f"{value!r}" if value != "" else "empty"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(TARGET)
