#!/usr/bin/env python
"""Writes docs/configuration.md from the config classes: `python tools/make_config_docs.py`. A test keeps it up to date."""

from __future__ import annotations

import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from megatron_lwz.config import KEPT, Config
from megatron_lwz.config.kept import ALL

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEAD = """# Configuration

<!-- Written by tools/make_config_docs.py from megatron_lwz/config. Do not edit. -->

One YAML file serves every stage; a stage reads the sections it needs. Precedence: the defaults below, then the file named by
a top-level `base:` (relative to the file), then the file itself, then `section.key=value` on the command line.
`${config_dir}` is the folder of the YAML file. Unknown keys and wrong types are errors: one line, exit status 2.

A single value may stand for a list of one. Lists of addresses, paths, functions, numbers and fixed words may also be one text
with commas (`rollout.urls=http://a:8000,http://b:8000`); texts such as `rollout.stop` are not split. `~` in a path is the home
folder.

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
    for name, field in Config.model_fields.items():
        parts += _section(name, _model(field))
        if name == "run":
            parts += _kept()
    return "\n".join(parts) + "\n"


def _kept() -> list[str]:
    rows = [
        f"| `{key}` | {'all' if kept.stages == ALL else ', '.join(kept.stages)} | {_cell(kept.why)} |"
        for key, kept in KEPT.items()
    ]
    return [KEPT_HEAD, "| key | stages | what depends on it |", "|---|---|---|", *rows]


def _section(path: str, model: type[BaseModel]) -> list[str]:
    lines = [
        f"\n## {path}\n",
        (model.__doc__ or "").strip(),
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    nested = []
    for name, field in model.model_fields.items():
        if _is_model(field):
            nested += _section(f"{path}.{name}", _model(field))
            if isinstance(field.default, BaseModel):  # has a heading of its own
                continue
        lines.append(f"| `{name}` | {_type(field)} | {_default(field)} | {_cell(field.description or '')} |")
    return lines + nested


def _model(field: FieldInfo) -> type[BaseModel]:
    return next(kind for kind in _kinds(field) if isinstance(kind, type) and issubclass(kind, BaseModel))


def _is_model(field: FieldInfo) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in _kinds(field))


def _kinds(field: FieldInfo) -> tuple[typing.Any, ...]:
    return (field.annotation, *typing.get_args(field.annotation))


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    if typing.get_origin(annotation) is dict:
        return "mapping"
    for kind in _kinds(field):
        if typing.get_origin(kind) is typing.Literal:
            return " \\| ".join(f"`{value}`" for value in typing.get_args(kind))
    names = [_name(kind) for kind in typing.get_args(annotation) if kind not in (type(None), ...)]
    if typing.get_origin(annotation) is tuple:
        return f"list of {names[0]}"
    return " or ".join(names) if names else _name(annotation)


def _name(kind: typing.Any) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return "section" if isinstance(kind, type) and issubclass(kind, BaseModel) else getattr(kind, "__name__", str(kind))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "see below"
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
