"""A hook of MkDocs: the pages outside docs/ become part of the site, and links between files lead to their pages.

The sources are written for the repository, so that they are also right when they are read there. A link to a file that is no
page (a script, a YAML file) gets a copy of that file.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security_policy.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "csrc/README.md": "csrc.md",
    "megatron_lwz/kernels/cuda/README.md": "cuda.md",
}
"""Page in the repository → its place in the site."""
COPIES = "files/"
REFERENCE = "api_reference.md"
"""The page of the public Python API, made from its docstrings."""

_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
_CODE = re.compile(r"^(?: {4}[^\n]*|```.*?^```)$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages outside docs/, and a copy of every other file that a page links to."""
    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, REFERENCE, content=_reference()))
    for file in [file for file in files if file.is_documentation_page()]:
        for target, _ in _LINK.findall(_without_code(file.content_string)):
            path = _in_repository(target, file.src_uri)
            if path is not None and _place(path).startswith(COPIES) and files.get_file_from_path(_place(path)) is None:
                files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns the text with every link between files of the repository as a link between pages of the site."""
    here = page.file.src_uri

    def led(link: re.Match[str]) -> str:
        path = _in_repository(link[1], here)
        return link[0] if path is None else posixpath.relpath(_place(path), posixpath.dirname(here)) + (link[2] or "")

    pieces = zip(_CODE.split(markdown), [*_CODE.findall(markdown), ""], strict=True)
    return "".join(_LINK.sub(led, text) + code for text, code in pieces)


def _reference() -> str:
    """Returns a page that names every public object, which mkdocstrings fills in without importing anything."""
    tree = ast.parse((ROOT / "megatron_lwz" / "__init__.py").read_text(encoding="utf-8"))
    (modules,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES"
    )
    lines = ["# API reference", "", "From the docstrings. [The Python API](api.md) says what they are for.", ""]
    for module, names in modules.items():
        lines += [f"## megatron_lwz.{module}", ""]
        lines += [line for name in names for line in (f"::: megatron_lwz.{module}.{name}", "")]
    return "\n".join(lines)


def _without_code(markdown: str) -> str:
    return _CODE.sub("", markdown)


def _source(place: str) -> str:
    """Returns the path in the repository of a page of the site."""
    return next((source for source, page in OUTSIDE.items() if page == place), f"docs/{place}")


def _place(path: str) -> str:
    """Returns the place in the site of a path in the repository."""
    return OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else COPIES + path)


def _in_repository(target: str, place: str) -> str | None:
    """Returns the path in the repository that a link of the page at `place` names; None for an address, or nothing there."""
    if re.match(r"[a-z]+:", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_source(place)), target))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None
