"""The frame of every page, and small parts that pages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_lwz.report.text import html

Crumbs = Sequence[tuple[str, str]]
"""(title, address) of the pages above this one."""

_KEYS = {
    "list": (
        ("j / k", "next / previous rollout"),
        ("Enter", "open it"),
        ("/", "search"),
        ("n / p", "next / previous page"),
    ),
    "reader": (
        ("j / k", "next / previous paragraph"),
        ("n / p", "next / previous mark of the band"),
        ("t", "go to the twin of a repeated passage"),
        ("[ / ]", "previous / next sibling"),
        ("b", "next band"),
        ("g / a", "go to the top / to the answer"),
        ("s", "siblings side by side"),
        ("d", "the prompt over the steps, with the difference"),
        ("f", "flag"),
        ("m", "write a note"),
        ("u", "back to the list"),
    ),
    "overview": (("r", "rollouts"), ("l", "log scale of all charts"), ("0", "all steps")),
    "steps": (("u", "back to the list"),),
    "compare": (("l", "log scale of all charts"), ("0", "all steps")),
    "siblings": (("u", "back to the list"),),
}


def page(
    title: str, body: str, *, crumbs: Crumbs = (), kind: str = "", scripts: Sequence[str] = (), attributes: str = ""
) -> str:
    """Returns a whole page. `title` and `crumbs` are escaped here, `body` and `attributes` must be already."""
    path = "".join(
        f'<a href="{html(address)}"><bdi>{html(name)}</bdi></a><span aria-hidden="true">/</span>'
        for name, address in crumbs
    )
    loaded = "".join(f'<script type="module" src="/static/{name}"></script>' for name in ("base.js", *scripts))
    keys = _keys(kind)
    ask = (
        '<button type="button" class="plain" id="keys-button" aria-haspopup="dialog">Keys <kbd>?</kbd></button>'
        if keys
        else ""
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<title>{html(title)}</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="/static/icon.svg" type="image/svg+xml">'
        f'<link rel="stylesheet" href="/static/report.css"><link rel="stylesheet" href="/static/ui.css">{loaded}</head>'
        f'<body class="page-{kind}" {attributes}><a class="skip" href="#main">Skip to the content</a>'
        f'<header class="bar"><nav aria-label="Place">{path}'
        f'<span class="here" aria-current="page"><bdi>{html(title)}</bdi></span></nav>{ask}'
        f'</header><main id="main" tabindex="-1">{body}</main>{keys}'
        '<p id="say" class="visually-hidden" role="status" aria-live="polite"></p></body></html>\n'
    )


def message_page(title: str, text: str) -> str:
    """Returns a page that only says something."""
    return page(title, f'<h1>{html(title)}</h1><p class="alarm">{html(text)}</p>', kind="message")


def note(text: str) -> str:
    """Returns a quiet remark."""
    return f'<p class="note">{html(text)}</p>'


def select(name: str, label: str, options: Mapping[str, str], chosen: str) -> str:
    """Returns a labelled choice."""
    items = "".join(
        f'<option value="{html(value)}"{" selected" if value == chosen else ""}>{html(title)}</option>'
        for value, title in options.items()
    )
    return f'<label>{html(label)}<select name="{name}">{items}</select></label>'


def field(name: str, label: str, value: object, *, numeric: bool = False, extra: str = "") -> str:
    """Returns a labelled field for text or a number."""
    mode = ' inputmode="decimal" class="short"' if numeric else ""
    given = "" if value is None else html(value)
    return f'<label>{html(label)}<input name="{name}" value="{given}" autocomplete="off"{mode} {extra}></label>'


def _keys(kind: str) -> str:
    rows = "".join(
        f"<tr><td><kbd>{html(key)}</kbd></td><td>{html(what)}</td></tr>" for key, what in _KEYS.get(kind, ())
    )
    if not rows:
        return ""
    return (
        '<dialog id="keys" aria-labelledby="keys-title"><h2 id="keys-title">Keys</h2>'
        f"<table><tbody>{rows}<tr><td><kbd>?</kbd></td><td>this list</td></tr></tbody></table>"
        '<form method="dialog"><button>Close</button></form></dialog>'
    )
