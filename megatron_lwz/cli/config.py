"""`lwz config`: shows, compares and explains settings, and writes their JSON schema."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from megatron_lwz.cli import common
from megatron_lwz.config import KEPT, Config, changes, kept_key, load_config, readers, unread
from megatron_lwz.config.kept import ALL
from megatron_lwz.config.load import as_yaml
from megatron_lwz.config.reference import REQUIRED, Setting, Settings, all_sections, json_schema


def main(argv: Sequence[str]) -> None:
    """Runs `lwz config show | diff | explain | schema`. Raises LwzError."""
    parser = common.Parser(prog="lwz config", description="Show, compare and explain settings.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="show | diff | explain | schema")
    show = actions.add_parser("show", help="all settings of a config, with its base files, defaults and overrides")
    show.add_argument("config", metavar="CONFIG", help="a YAML file, or a folder that holds config.yaml")
    show.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    show.add_argument("--changed", action="store_true", help="only what differs from the defaults")
    show.add_argument("--stage", choices=ALL, help="name only what this stage does not read; default: for every stage")
    diff = actions.add_parser("diff", help="the keys in which two configs differ")
    diff.add_argument("old", metavar="OLD", help="a YAML file, or a run folder")
    diff.add_argument("new", metavar="NEW", help="a YAML file, or a run folder")
    explain = actions.add_parser("explain", help="what a key means; or the keys of a section; or those with a word")
    explain.add_argument("key", metavar="KEY", help="e.g. rollout.max_staleness, rollout, or staleness")
    actions.add_parser("schema", help="the JSON schema, for editors")
    asked = parser.parse_args(argv)
    _ACTIONS[asked.action](asked)


def _show(asked: argparse.Namespace) -> None:
    config = load_config(asked.config, asked.overrides)
    tree = config.model_dump(mode="json")
    if asked.changed:
        tree = _difference(Config().model_dump(mode="json"), tree)
    _print(as_yaml(tree).rstrip() if tree else "# nothing differs from the defaults")
    for stage in (asked.stage,) if asked.stage else ALL:
        if keys := unread(config, stage):
            _print(f"# not read by stage {stage}: {', '.join(keys)}")


def _difference(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The part of a tree that differs from another, a section that is null there as a whole."""
    found = {}
    for name, value in given.items():
        other = default.get(name)
        if isinstance(value, dict) and isinstance(other, dict) and value and other:
            value = _difference(other, value)
            if value:
                found[name] = value
        elif value != other:
            found[name] = value
    return found


def _diff(asked: argparse.Namespace) -> None:
    found = changes(load_config(asked.old), load_config(asked.new))
    _print("\n".join(map(str, found)) if found else "no setting differs")


def _schema(asked: argparse.Namespace) -> None:
    _print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _explain(asked: argparse.Namespace) -> None:
    sections = list(all_sections())
    keys = {f"{section.key}.{setting.name}": setting for section in sections for setting in section.settings}
    setting, section = keys.get(asked.key), next((section for section in sections if section.key == asked.key), None)
    if setting is not None:
        _explain_setting(asked.key, setting)
    if section is not None:
        _explain_section(section, [other for other in sections if other.key.rpartition(".")[0] == asked.key])
    if setting is None and section is None:
        found = _containing(asked.key, sections)
        if not found:
            raise common.UsageError(_advice(asked.key, [*keys, *(section.key for section in sections)]))
        _list(found)


def _containing(word: str, sections: list[Settings]) -> dict[str, str]:
    """Key → meaning of the settings that have the word in their key or meaning."""
    word = word.lower()
    return {
        f"{section.key}.{setting.name}": setting.meaning
        for section in sections
        for setting in section.settings
        if word in f"{section.key}.{setting.name} {setting.meaning}".lower()
    }


def _advice(key: str, known: list[str]) -> str:
    lasts = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key, known, n=2) or [
        lasts[last] for last in difflib.get_close_matches(key.rpartition(".")[2], lasts, n=2)
    ]
    see = f"did you mean {' or '.join(close)}?" if close else "docs/configuration.md has all keys"
    return f"'{key}' is no key, no section and no word of a meaning: {see}"


def _explain_section(section: Settings, inner: list[Settings]) -> None:
    _print(section.key)
    _print_meaning(section.meaning, 2)
    _list({f"{section.key}.{s.name}": s.meaning for s in section.settings} | {s.key: s.meaning for s in inner})


def _explain_setting(key: str, setting: Setting) -> None:
    _print(key)
    _print_meaning(setting.meaning, 2)
    kind = " | ".join(setting.choices) or setting.kind
    rows = {"type": f"{kind}, {setting.bounds}" if setting.bounds else kind, "default": _default(setting.default)}
    if readers(key) != ALL:
        rows["read by"] = ", ".join(readers(key))
    if (name := kept_key(key)) is not None:
        kept = KEPT[name]
        stages = "every stage" if kept.stages == ALL else ", ".join(kept.stages)
        rows["kept"] = f"a run of {stages} keeps it (run.allow_change): {kept.why}"
    for name, text in rows.items():
        _print(f"  {name:<8} {text}")


def _default(value: Any) -> str:
    return "none: it must be given" if value is REQUIRED else json.dumps(value, ensure_ascii=False)


def _list(meanings: dict[str, str]) -> None:
    for key, meaning in meanings.items():
        _print(f"  {key}")
        _print_meaning(meaning, 6)


def _print_meaning(text: str, indent: int) -> None:
    width = min(common.console().width, 120)
    _print(textwrap.fill(text, width, initial_indent=" " * indent, subsequent_indent=" " * indent))


def _print(text: str) -> None:
    common.console().print(text, markup=False)


_ACTIONS = {"show": _show, "diff": _diff, "explain": _explain, "schema": _schema}


if __name__ == "__main__":
    sys.exit(common.run(main))
