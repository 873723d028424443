"""The pages say only what exists: links, settings, make targets, commands."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from megatron_lwz.config import Config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BY_NAME = {"ids": lambda path: str(path.relative_to(ROOT)), "argnames": "page", "argvalues": PAGES}


def known_settings() -> set[str]:
    found: set[str] = set()

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            found.add(prefix + name)
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    walk(kind, f"{prefix}{name}.")

    walk(Config, "")
    return found


@pytest.mark.parametrize(**BY_NAME)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(**BY_NAME)
def test_every_setting_that_a_page_names_exists(page):
    sections, settings = set(Config.model_fields), known_settings()
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:: [^`]*)?`", page.read_text(encoding="utf-8")):
        if name.split(".")[0] in sections and not name.endswith((".yaml", ".json", ".jsonl", ".py", ".sh")):
            assert name in settings, name


def test_the_readme_names_commands_and_targets_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for module in re.findall(r"-m megatron_lwz\.cli\.(\w+)", text):
        assert (ROOT / "megatron_lwz" / "cli" / f"{module}.py").is_file(), module
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert set(re.findall(r"make (\w[\w-]*)", text)) <= set(targets)


def test_paths_in_the_pages_exist():
    for page in PAGES:
        for path in re.findall(
            r"`((?:tools|tests|docs|examples|requirements)/[\w./-]+)`", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
