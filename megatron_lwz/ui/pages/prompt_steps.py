"""One prompt over the steps of a run: its groups, and two of its rollouts compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from megatron_lwz.report.blocks import lang
from megatron_lwz.report.text import clip, html, shown
from megatron_lwz.ui.index import Index
from megatron_lwz.ui.pages.layout import note
from megatron_lwz.ui.pages.layout import page as whole_page
from megatron_lwz.ui.rollouts import neighbours, read_group
from megatron_lwz.ui.run import Run
from megatron_lwz.ui.textdiff import Part, compare, share_in_common

Place = tuple[int, int]


def page(run: Run, query: Mapping[str, str]) -> str | None:
    """Returns the page of the prompt `id` of the kind `kind`; `a` and `b` are the rollouts, GROUP.INDEX. None without any."""
    index = run.index()
    prompt, kind = query.get("id", ""), query.get("kind", "training")
    groups = neighbours(index, prompt, kind) if index is not None else []
    if index is None or not groups:
        return None
    first = _place(query.get("a")) or (groups[0]["group"], groups[0]["first"])
    last = _place(query.get("b")) or (groups[-1]["group"], groups[-1]["first"])
    where = f"/runs/{run.name}"
    crumbs = [("Runs", "/"), (run.title, where), ("Rollouts", f"{where}/rollouts")]
    sides = [(place, _answer(index, place, prompt)) for place in (first, last)]
    body = (
        f"<h1>Prompt <bdi>{html(prompt)}</bdi></h1>{_table(where, prompt, kind, groups, first, last)}"
        f"{_difference(where, sides) if first != last else note('This prompt has one rollout so far: nothing to compare.')}"
    )
    attributes = f'data-list="{where}/rollouts" data-run="{html(run.name)}"'
    return whole_page(
        f"Prompt {clip(prompt, 40)}", body, crumbs=crumbs, kind="steps", scripts=("list.js",), attributes=attributes
    )


def _table(where: str, prompt: str, kind: str, groups: Sequence[Mapping[str, Any]], first: Place, last: Place) -> str:
    lines = []
    for group in groups:
        place = f"{group['group']}.{group['first']}"
        links = []
        for name, title, chosen, other in (("a", "left", first, last), ("b", "right", last, first)):
            pair = {name: place, "b" if name == "a" else "a": f"{other[0]}.{other[1]}"}
            here = ' aria-current="true"' if chosen[0] == group["group"] else ""
            links.append(
                f'<a href="{where}/prompt?{html(urlencode({"id": prompt, "kind": kind, **pair}))}"{here}>{title}</a>'
            )
        lines.append(
            f'<tr><td><a href="{where}/groups/{group["group"]}">group {group["group"]}</a></td><td>{group["step"]}</td>'
            f"<td>{group['rollouts']}</td><td>{group['words']:,.0f}</td><td>{' '.join(links)}</td></tr>"
        )
    head = "<tr><th></th><th>step</th><th>rollouts</th><th>mean words</th><th>compare</th></tr>"
    table = f'<table class="steps"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Groups of this prompt">{table}</div>'


def _difference(where: str, sides: Sequence[tuple[Place, str | None]]) -> str:
    texts = [shown(text or "").text for _, text in sides]
    if any(text is None for _, text in sides):
        return note("One of the two rollouts is not finished, or belongs to another prompt.")
    rows = []
    for pair in compare(*texts):
        cells = "".join(
            f'<p dir="auto" lang="{lang(texts[side])}">{_parts(parts, mark)}</p>'
            for side, (parts, mark) in enumerate(((pair.left, "del"), (pair.right, "ins")))
        )
        same = all(kind == "same" for kind, _ in (*pair.left, *pair.right))
        rows.append(f'<div class="pair{" same" if same else ""}">{cells}</div>')
    heads = "".join(f'<h2><a href="{where}/rollouts/{g}/{i}">#{g}.{i}</a></h2>' for (g, i), _ in sides)
    said = f"{share_in_common(*texts):.0%} of the text stands in both word for word, paragraph by paragraph."
    return (
        f'<p class="note">{said}</p><div class="diff prose"><div class="pair heads">{heads}</div>{"".join(rows)}</div>'
    )


def _parts(parts: Sequence[Part], mark: str) -> str:
    return "".join(html(text) if kind == "same" else f"<{mark}>{html(text)}</{mark}>" for kind, text in parts)


def _answer(index: Index, place: Place, prompt: str) -> str | None:
    view = read_group(index, place[0], only=place[1])
    if view is None or view.prompt.id != prompt or place[1] not in view.members:
        return None
    member = view.members[place[1]]
    answer = view.parsed(member).answer
    return member.text if answer is None else answer


def _place(text: str | None) -> Place | None:
    match = re.fullmatch(r"(-?\d{1,18})\.(\d{1,9})", text or "")
    return (int(match[1]), int(match[2])) if match else None
