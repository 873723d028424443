"""The public Python API: `import megatron_lwz` is cheap, its names are pinned, and docs/api.md's example runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

import megatron_lwz
from tests.support.paths import ROOT
from tests.support.public_api import render

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
CHEAP = """
import sys
before = set(sys.modules)
import megatron_lwz
assert not {name.partition(".")[0] for name in set(sys.modules) - before} - {"megatron_lwz", *sys.stdlib_module_names}
for name in megatron_lwz.__all__:
    getattr(megatron_lwz, name)
assert "torch" in sys.modules
print([name for name in sys.modules if name.partition(".")[0] == "megatron"])
"""


def test_the_import_loads_no_package_and_no_name_loads_megatron_core():
    done = subprocess.run([sys.executable, "-c", CHEAP], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_names_and_signatures_are_those_that_were_promised():
    """Parts of a class that only runs need (`Journal.rewind`) and the settings of `Config` are no promise."""
    promised = (ROOT / "tests" / "data" / "public_api.txt").read_text(encoding="utf-8").splitlines()
    broken = [line for line in promised if line not in render().splitlines()]
    assert broken == [], "promised to users: if it must change, say so in CHANGELOG.md and in public_api.txt"
    assert {re.match(r"\w+", line)[0] for line in promised} | {"Config"} == set(megatron_lwz._HOME)


def test_type_checkers_and_the_page_know_the_same_names():
    stub = ast.parse((ROOT / "megatron_lwz" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    assert typed == {name: f"megatron_lwz.{module}" for name, module in megatron_lwz._HOME.items()}
    table = "".join(line for line in PAGE.splitlines() if line.startswith("|"))
    assert set(typed) <= set(re.findall(r"`(\w+)`", table))


def test_an_unknown_name_is_an_attribute_error_and_packages_are_found():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        megatron_lwz.nothing  # noqa: B018
    from megatron_lwz import rewards

    assert rewards.__name__ == "megatron_lwz.rewards" and "grpo_loss" in dir(megatron_lwz)


def test_the_pages_example_runs_as_it_stands():
    ((name, text),) = re.findall(r"^<!-- example: (\w+\.py) -->\n```python\n(.*?)^```$", PAGE, re.M | re.S)
    assert PAGE.count("```python") == 1
    exec(compile(text, name, "exec"), {"__name__": name})
