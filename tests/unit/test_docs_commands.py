"""The commands in the pages exist, and have the options that the pages give them."""

from __future__ import annotations

import importlib
import inspect
import re
import sys

import pytest

from megatron_lwz.cli import main
from tests.support.pages import PAGES, ROOT, read

COMMAND = re.compile(
    r"(?:^|[\s`|(])(lwz (?P<lwz>[a-z][a-z-]*)(?P<sub> [a-z][a-z-]*)?|python (?P<tool>tools/\w+)\.py(?P<action> \w+)?"
    r"|(?:python|torchrun[^\n`]*?) -m megatron_lwz\.cli\.(?P<stage>\w+))(?P<rest>[^\n`|#;]*)"
)
NESTED = ("evaluate", "config")
"""Commands of `lwz` whose second word is a command too."""


def found() -> dict[tuple[str, ...], set[str]]:
    """Returns module and first words of each command → the options that some page gives it."""
    commands: dict[tuple[str, ...], set[str]] = {}
    for page in PAGES:
        for match in COMMAND.finditer(re.sub(r"\\\n\s*", " ", read(page))):
            options = set(re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", match["rest"]))
            if match["stage"]:
                key: tuple[str, ...] = (f"megatron_lwz.cli.{match['stage']}",)
            elif match["tool"]:
                key = (match["tool"].replace("/", "."), *_action(match))
            elif match["lwz"] in NESTED:
                key = ("lwz", match["lwz"], *(match["sub"] or "").split())
            else:
                key = ("lwz", match["lwz"])
            commands.setdefault(key, set()).update(options)
    return commands


def _action(match: re.Match[str]) -> list[str]:
    return match["action"].split() if match["tool"] == "tools/convert_hf" and match["action"] else []


COMMANDS = {key: options for key, options in found().items() if options or not key[0].startswith("tools.")}
"""A tool to which no page gives an option may have none, not even --help. `test_docs` looks whether its file exists."""


def test_the_pages_name_many_commands():
    assert len(COMMANDS) > 40 and ("lwz", "evaluate", "generate") in COMMANDS


@pytest.mark.parametrize("key", COMMANDS, ids=" ".join)
def test_a_command_has_the_options_that_pages_give_it(key, capsys, monkeypatch):
    module, *words = key
    arguments = [*words, "--help"]
    monkeypatch.syspath_prepend(ROOT / "tools")  # tools import each other
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        if module == "lwz":
            main.dispatch(arguments)
        else:
            run = importlib.import_module(module).main
            run(arguments) if inspect.signature(run).parameters else run()
    assert not ended.value.code
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert COMMANDS[key] - {"--traceback"} <= known, sorted(COMMANDS[key] - known)
