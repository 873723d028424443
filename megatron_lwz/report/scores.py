"""The scores of a rollout with what the components report and what the judge says. Quotations lead to their place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_lwz.report.axes import short
from megatron_lwz.report.blocks import lang
from megatron_lwz.report.text import Shown, clip, html, shown
from megatron_lwz.types import ComponentScore

_QUOTED = re.compile(r"“([^“”]{2,300})”|\"([^\"]{2,300})\"|「([^「」]{2,300})」|『([^『』]{2,300})』")
_LEAST = 8
"""Width of the shortest quotation that becomes a link; a wide character, such as a Chinese one, counts as two."""
_JUDGED = "/lwz-"
"""Stands in the version of every score of a judge (`rewards.judge_prompts`)."""


@dataclass(frozen=True)
class _Response:
    """The text that a judge may quote, and as it is shown."""

    text: str
    seen: Shown


def score_table(scores: Mapping[str, ComponentScore], text: str | None = None) -> str:
    """Returns the scores. With the response's `text`, reasons are unfolded and their quotations of it are links."""
    if not scores:
        return '<p class="soft">not scored yet</p>'
    response = None if text is None else _Response(text, shown(text))
    return "".join(_score(name, score, response) for name, score in scores.items())


def _score(name: str, score: ComponentScore, response: _Response | None) -> str:
    value = f"<b>{short(score.value)}</b>" if score.valid else '<b class="soft">masked</b>'
    details = "".join(
        f"<dt><bdi>{html(key)}</bdi></dt><dd>{_number(found)}</dd>" for key, found in score.details.items()
    )
    by = f"<dt>by</dt><dd><bdi>{html(clip(score.version, 60))}</bdi></dd>"
    unfolded = " open" if score.reasons and response is not None else ""
    return (
        f'<details class="score"{unfolded}><summary><bdi>{html(name)}</bdi> {value}</summary>{_reasons(score, response)}'
        f"<dl>{details}{by}</dl></details>"
    )


def _reasons(score: ComponentScore, response: _Response | None) -> str:
    if not score.reasons:
        return '<p class="soft">No words of the judge are stored.</p>' if _JUDGED in score.version else ""
    lines = []
    for about, said in score.reasons:
        named = f"<b><bdi>{html(about)}</bdi></b> " if about else ""
        lines.append(f'<p lang="{lang(said)}" dir="auto">{named}{_linked(said, response)}</p>')
    return f'<div class="reasons">{"".join(lines)}</div>'


def _linked(said: str, response: _Response | None) -> str:
    """Returns a reason as HTML, with links at quotations that stand in the text word for word."""
    if response is None:
        return html(said)
    parts, at = [], 0
    for match in _QUOTED.finditer(said):
        quoted = (match[1] or match[2] or match[3] or match[4]).strip(" .…,，。")
        place = response.text.find(quoted) if _width(quoted) >= _LEAST else -1
        if place < 0:
            continue
        start = said.index(quoted, match.start())
        low, high = (response.seen.place(where) for where in (place, place + len(quoted)))
        parts.append(f'{html(said[at:start])}<a href="#o{low}" data-to="{low}" data-end="{high}">{html(quoted)}</a>')
        at = start + len(quoted)
    return "".join(parts) + html(said[at:])


def _width(text: str) -> int:
    return sum(2 if char >= "\u2e80" else 1 for char in text)


def _number(value: object) -> str:
    return short(value) if isinstance(value, (int, float)) else html(clip(str(value), 200))
