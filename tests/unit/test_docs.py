"""The pages say only what exists: links, settings, make targets, commands."""

import re
from pathlib import Path
from textwrap import dedent

import pytest
from pydantic import BaseModel

from megatron_lwz.config import Config, load_config
from megatron_lwz.errors import LwzError
from tests.support.pages import PAGES, ROOT, read

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
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(page)):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    found: set[str] = set()
    for heading in headings:
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(name if name not in found else f"{name}-1")
    return found


@pytest.mark.parametrize(**BY_NAME)
def test_anchors_of_links_are_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", read(page)):
        if not target.startswith("http"):
            assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def yaml_blocks(page: Path) -> list[str]:
    """Returns the fenced and the indented blocks of a page that begin with a section of the config."""
    indented = [dedent(block) for block in re.findall(r"(?:^ {4}.*\n)+", read(page), re.MULTILINE)]
    fenced = re.findall(r"^```yaml\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
    section = re.compile(rf"\s*(?:#.*\n)*(?:base|{'|'.join(Config.model_fields)}):(?: |\n)")
    return [block for block in (*fenced, *indented) if section.match(block)]


def test_configs_in_the_pages_are_valid(tmp_path):
    blocks = [(page, block) for page in PAGES for block in yaml_blocks(page)]
    assert len(blocks) >= 10
    for page, block in blocks:
        file = tmp_path / "config.yaml"
        file.write_text(re.sub(r"^base: .*\n", "", block, flags=re.MULTILINE), encoding="utf-8")
        try:
            load_config(file)
        except LwzError as error:
            raise AssertionError(f"{page.name}: {error}") from error


def test_the_site_has_every_page_once():
    text = read(ROOT / "tools" / "docs" / "mkdocs.yml")
    listed = re.findall(r"[\w/]+\.md", text[text.index("\nnav:") :])
    assert len(listed) == len(set(listed))
    assert {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} <= set(listed)


@pytest.mark.parametrize(**BY_NAME)
def test_every_setting_that_a_page_names_exists(page):
    sections, settings = set(Config.model_fields), known_settings()
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:: [^`]*)?`", read(page)):
        if name.split(".")[0] in sections and not name.endswith((".yaml", ".json", ".jsonl", ".py", ".sh")):
            assert name in settings, name


def test_the_readme_names_commands_and_targets_that_exist():
    text = read(ROOT / "README.md")
    for module in re.findall(r"-m megatron_lwz\.cli\.(\w+)", text):
        assert (ROOT / "megatron_lwz" / "cli" / f"{module}.py").is_file(), module
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert set(re.findall(r"make (\w[\w-]*)", text)) <= set(targets)


def test_paths_in_the_pages_exist():
    for page in PAGES:
        for path in re.findall(r"`((?:tools|tests|docs|examples|requirements)/[\w./-]+)`", read(page)):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
