"""The pages of the documentation, for the tests that look whether they say only what exists."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def read(page: Path) -> str:
    """Returns the text of a page."""
    return page.read_text(encoding="utf-8")
