"""Several runs side by side: their curves in the same charts, and how their settings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_lwz.report.text import clip, html
from megatron_lwz.ui.pages import charts
from megatron_lwz.ui.pages.layout import note
from megatron_lwz.ui.pages.layout import page as whole_page
from megatron_lwz.ui.run import Run

MOST = 6
"""Runs that are compared at once: so many colours can be told apart."""
_MOST_KEYS = 5000
_DEEPEST = 20
_OWN = ("run.dir", "run.name")
"""Settings that always differ and mean nothing."""


def page(runs: Sequence[Run], query: Mapping[str, str]) -> str:
    """Returns the page of at most MOST runs."""
    titles = ", ".join(run.title for run in runs)
    curves = charts.sections(runs, charts.View.read(query)) or note("None of these runs has finished a step.")
    body = f"<h1>Compare</h1><p class='lead'><bdi>{html(titles)}</bdi></p><h2>Settings that differ</h2>{_settings(runs)}{curves}"
    return whole_page("Compare", body, crumbs=[("Runs", "/")], kind="compare", scripts=("charts.js",))


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Returns setting → its value in every config, None where it is missing, for settings that are not equal in all."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for found in flat for key in found)
    rows = {key: [found.get(key) for found in flat] for key in keys if key not in _OWN}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns `section.key` → value as text. Settings beyond 5,000, or 20 levels deep, are left out."""
    found: dict[str, str] = {}

    def walk(value: Any, prefix: str, depth: int) -> None:
        if len(found) >= _MOST_KEYS or depth > _DEEPEST:
            return
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, f"{prefix}.{key}" if prefix else str(key), depth + 1)
        else:
            found[prefix] = clip(str(value), 300)

    walk(config, "", 0)
    return found


def _settings(runs: Sequence[Run]) -> str:
    rows = differences([run.config for run in runs])
    if not rows:
        return note("None but the folder and the name.")
    heads = "".join(f'<th scope="col"><bdi>{html(run.name)}</bdi></th>' for run in runs)
    lines = "".join(
        f'<tr><th scope="row"><code>{html(key)}</code></th>{"".join(f"<td><bdi>{html(_shown(v))}</bdi></td>" for v in values)}</tr>'
        for key, values in rows.items()
    )
    table = f'<table class="settings"><thead><tr><td></td>{heads}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Settings that differ">{table}</div>'


def _shown(value: str | None) -> str:
    return "–" if value is None else value
