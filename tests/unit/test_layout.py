"""Who may import what among the tests: helpers, never another test module; what directories share is in tests/support.

And what has one place in the package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

SHARED = "tests.support"
NAMED = re.compile(r"\b(tests(?:\.\w+)*)(?: import (\([^)]*\)|[^\n#]*))?")
"""A module of the tests, and what is imported from it; in code or in a string (`python -m`, `module:function`, a script)."""


def names_in(text: str) -> Iterator[str]:
    """Every dotted name under `tests` that the source imports or writes down."""
    for module, imported in NAMED.findall(text):
        names = [name.split()[0] for name in imported.strip("()").split(",") if name.strip()]
        yield from (f"{module}.{name}" for name in names) if names else (module,)


def module_of(name: str) -> Path | None:
    """The file behind a dotted name, which may go on with names inside the module."""
    parts = name.split(".")
    files = (ROOT.joinpath(*parts[:count]).with_suffix(".py") for count in range(len(parts), 1, -1))
    return next((file for file in files if file.exists()), None)


def mistakes(file: Path, text: str) -> list[str]:
    found = {(name, module) for name in names_in(text) if (module := module_of(name)) and module != file}
    return [
        f"{file.relative_to(ROOT)}: {name}"
        for name, module in sorted(found)
        if module.name.startswith("test_") or (module.parent != file.parent and not name.startswith(f"{SHARED}."))
    ]


def test_no_test_module_is_imported_and_what_directories_share_is_in_support():
    files = [file for folder in ("tests", "tools", "examples") for file in sorted((ROOT / folder).rglob("*.py"))]
    files.remove(Path(__file__).resolve())
    assert len(files) > 200
    assert [line for file in files for line in mistakes(file, file.read_text(encoding="utf-8"))] == []


def test_the_rule_sees_imports_strings_and_other_directories():
    here = ROOT / "tests" / "unit" / "orchestrator" / "test_remote_host.py"
    assert here.exists()
    for text in (
        "from tests.unit.rollout.test_journal import anything",
        "from tests.unit.rollout import test_journal as t",
        "from tests.unit.orchestrator import (\n    echo_host,\n    test_engines,\n)",
        "import tests.unit.rollout.test_journal",
        "command = ['-m', 'tests.unit.rollout.test_journal:main']",
        "from tests.end_to_end.evaluate_runs import anything",
    ):
        assert len(mistakes(here, text)) == 1, text
    for text in ("from tests.unit.orchestrator.echo_host import anything", "from tests.support import weight_peer"):
        assert mistakes(here, text) == [], text


def test_units_of_memory_are_named_in_one_place():
    unit = re.compile(r"^ *_?[KMG]IB\b.*=[^=]*\d|[*/] ?2 ?\*\* ?[23]0\b|<< ?[23]0\b", re.MULTILINE)
    assert unit.search("GIB = 2**30") and unit.search("64 << 20") and unit.search("x / 2**20")
    files = [file for file in sorted((ROOT / "megatron_lwz").rglob("*.py")) if file.name != "units.py"]
    assert [str(file) for file in files if unit.search(file.read_text(encoding="utf-8"))] == []
