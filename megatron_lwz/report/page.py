"""The frame of every page that is written as one file: it opens from disk, and its policy lets it load nothing."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

from megatron_lwz.writing import write_text


def write_page(path: Path, title: str, body: str, *, script: str = "") -> None:
    """Writes the page, whole or not at all. `title` is escaped here, `body` must be already.

    `script`: JavaScript that stands in the page. It is the only one that the page's policy lets a browser run.
    """
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'" if script else "script-src 'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; {allowed}; base-uri 'none'; form-action 'none'"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{style}</style></head><body>{body}{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )
    write_text(path, page, private=True)
