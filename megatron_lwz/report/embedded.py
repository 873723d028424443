"""Rollouts from the whole run inside the report, to be searched. Their number and their size are bounded, and said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_lwz.report.axes import short
from megatron_lwz.report.reading import median_member, reading, scores_of, total, words_of
from megatron_lwz.report.text import clip, html
from megatron_lwz.rollout.journal_reader import JournalReader
from megatron_lwz.types import Group

MOST = 200
"""Most rollouts in a page."""
_HEAD = 110
_ORDERS = {
    "newest": "newest first",
    "oldest": "oldest first",
    "best": "best scores first",
    "worst": "worst scores first",
    "longest": "longest first",
}


def panel(journal: Path, megabytes: float) -> str:
    """Returns the list with its search box; empty without trained groups or with `megabytes` 0. Raises DataError."""
    bound = round(megabytes * 1e6)
    with JournalReader(journal) as reader:
        consumed = reader.consumed()
        ids = sorted(consumed, key=lambda group: (consumed[group], group))
        if not ids or not bound:
            return ""
        chosen = [ids[place] for place in spread(len(ids), MOST)]
        found: dict[int, str] = {}
        size = 0
        for group in reader.texts(chosen):
            item = _item(group, consumed[group.id])
            size += len(item.encode())
            if size > bound:
                size -= len(item.encode())
                break
            found[group.id] = item
    newest = sorted(found, key=lambda group: (consumed[group], group), reverse=True)
    said = (
        f"{len(found):,} rollouts of the {len(ids):,} groups that training used, spread evenly over the steps, of each group the "
        f"one of median score: {size / 1e6:.1f} MB. This file takes at most {MOST} of them and {short(megabytes)} MB "
        "(logging.report_megabytes); lwz ui shows all."
    )
    return f'<p class="note">{said}</p>{_search()}<div id="found">{"".join(found[group] for group in newest)}</div>'


def spread(count: int, most: int) -> list[int]:
    """Returns up to `most` of the places 0 … count − 1 in an order of which every beginning is spread over all of them."""
    size = min(count, most)
    bits = max(1, (size - 1).bit_length())
    order = [int(f"{place:0{bits}b}"[::-1], 2) for place in range(1 << bits)]
    return [place * (count - 1) // max(1, size - 1) for place in order if place < size]


def script() -> str:
    """Returns the script of the search box."""
    return Path(__file__).with_name("embedded.js").read_text(encoding="utf-8")


def _search() -> str:
    options = "".join(f'<option value="{value}">{title}</option>' for value, title in _ORDERS.items())
    return (
        '<form class="search" id="search" role="search" hidden><input type="search" aria-label="Search these rollouts" '
        'placeholder="words, “a phrase”, 中文" autocomplete="off"><select aria-label="Order">'
        f'{options}</select><output aria-live="polite"></output></form>'
    )


def _item(group: Group, step: int) -> str:
    index = median_member(group)
    scores = scores_of(group, index)
    words = words_of(group, index)
    named = " · ".join(_facts(group, index, step, words))
    return (
        f'<details class="found" data-step="{step}" data-score="{total(scores):.6g}" data-words="{words}"><summary>'
        f"<bdi>{html(clip(group.prompt.text, _HEAD)) or '(empty prompt)'}</bdi><small>{named}</small></summary>"
        f"{reading(group, index)}</details>"
    )


def _facts(group: Group, index: int, step: int, words: int) -> Iterator[str]:
    yield from (f"#{group.id}.{index}", f"step {step}", f"{words:,} words")
    for name, score in scores_of(group, index).items():
        yield f"{html(name)} {short(score.value) if score.valid else 'masked'}"
