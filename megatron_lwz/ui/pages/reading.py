"""The reader: one rollout as prose, with its scores, its siblings and its bands."""

from __future__ import annotations

from urllib.parse import urlencode

from megatron_lwz.data.text.length import count_units
from megatron_lwz.report.blocks import headings, lang, prose
from megatron_lwz.report.scores import score_table
from megatron_lwz.report.text import clip, html, shown
from megatron_lwz.types import Alarm
from megatron_lwz.ui.bands import BANDS, reasons
from megatron_lwz.ui.notes import MOST_CHARACTERS, Note
from megatron_lwz.ui.pages.layout import page as whole_page
from megatron_lwz.ui.rollouts import GroupView, Member, read_group
from megatron_lwz.ui.run import Run

_TITLE = 60


def page(run: Run, group: int, rollout: int) -> str | None:
    """Returns the reader's page; None if the rollout does not exist or is unfinished. Raises DataError."""
    index = run.index()
    view = read_group(index, group, only=rollout) if index is not None else None
    if index is None or view is None or rollout not in view.members:
        return None
    member = view.members[rollout]
    where = f"/runs/{run.name}"
    title = f"#{group}.{rollout}"
    crumbs = [("Runs", "/"), (run.title, where), ("Rollouts", f"{where}/rollouts")]
    note = run.notes.get(group, rollout)
    body = (
        f'<div class="reader"><aside class="side" aria-label="About this rollout">{_side(run, view, member, note)}</aside>'
        f'<div class="paper">{_prompt(view)}{_text(view, member)}</div></div>'
        '<canvas id="minimap" aria-hidden="true"></canvas><div id="tip" role="tooltip" hidden></div>'
    )
    here = f"{where}/rollouts/{group}/{rollout}"
    steps = urlencode({"id": view.prompt.id, "kind": view.kind})
    attributes = (
        f'data-bands="{here}/bands" data-note="{here}/note" data-list="{where}/rollouts" data-run="{html(run.name)}" '
        f'data-siblings="{where}/groups/{group}" data-steps="{where}/prompt?{html(steps)}"'
    )
    return whole_page(title, body, crumbs=crumbs, kind="reader", scripts=("reader.js",), attributes=attributes)


def facts(view: GroupView, member: Member, answer: str) -> str:
    """Returns the list of facts about a rollout."""
    asked = view.prompt.length
    words = count_units(answer)
    length = f"{words:,}" + (f" of {asked.lower:,}–{asked.upper:,} asked" if asked else "")
    state = f"step {view.step}" if view.step is not None else f"dropped: {view.dropped}" if view.dropped else "not yet"
    pairs = [
        ("Answer", f"{length} words and CJK characters"),
        ("Tokens", f"{member.tokens:,}"),
        ("Ended", _end(member)),
        ("Form", view.parsed(member).fault or "well-formed"),
        ("Trained on", state if view.kind == "training" else "never: a held-out prompt"),
        ("Weights", _weights(member)),
        ("Prompt", view.prompt.id),
    ]
    pairs += [("Left out", member.excluded)] if member.excluded else []
    pairs += [("Advantage", _advantage(member))] if member.advantage is not None else []
    pairs += [("Mean log-prob", f"{member.logprob:.3f}")] if member.logprob is not None else []
    pairs += [("Guard", _guard(alarm)) for alarm in member.alarms]
    items = "".join(f"<dt>{name}</dt><dd><bdi>{html(value)}</bdi></dd>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def _side(run: Run, view: GroupView, member: Member, note: Note) -> str:
    parsed = view.parsed(member)
    answer = parsed.answer if parsed.answer is not None else member.text
    missing = reasons(run, view, member)
    bands = "".join(
        f'<label><input type="radio" name="band" value="{name}"{" checked" if name == "none" else ""}> {title}'
        f"{' <small>no data</small>' if name in missing else ''}</label>"
        for name, title in BANDS.items()
    )
    return (
        f'{_siblings(run, view, member)}<details class="about" open><summary>About this rollout</summary>{facts(view, member, answer)}'
        f"<section><h2>Scores</h2>{score_table(member.scores, member.text)}</section>"
        f'<section><h2 id="band-title">Band</h2><div class="bands" role="radiogroup" aria-labelledby="band-title">{bands}</div>'
        '<p id="legend" class="legend" role="status"></p></section>'
        f"{_outline(view, member)}{_note(note)}</details>"
    )


def _siblings(run: Run, view: GroupView, member: Member) -> str:
    links = []
    for index in range(view.size):
        if index not in view.members:
            links.append(f'<span class="soft" title="still being written">{index}</span>')
            continue
        here = ' aria-current="page"' if index == member.index else ""
        links.append(f'<a href="/runs/{html(run.name)}/rollouts/{view.id}/{index}"{here}>{index}</a>')
    side = f'<a class="button" href="/runs/{html(run.name)}/groups/{view.id}">Side by side</a>'
    steps = urlencode({"id": view.prompt.id, "kind": view.kind, "b": f"{view.id}.{member.index}"})
    side += f'<a class="button" href="/runs/{html(run.name)}/prompt?{html(steps)}">Over the steps</a>'
    side += f'<a class="button" href="/runs/{html(run.name)}/rollouts/{view.id}/{member.index}/markdown">Markdown</a>'
    return f'<nav class="siblings" aria-label="Siblings"><span class="soft">Siblings</span>{"".join(links)}{side}</nav>'


def _outline(view: GroupView, member: Member) -> str:
    seen = shown(member.text)
    places = [(seen.place(start), seen.place(end)) for kind, start, end in segments(view, member) if kind != "think"]
    found = [heading for low, high in places for heading in headings(seen.text[low:high], low)]
    if len(found) < 2:
        return ""
    items = "".join(
        f'<li class="l{level}"><a href="#o{place}" data-to="{place}"><bdi>{html(clip(title, 48))}</bdi></a></li>'
        for place, level, title in found
    )
    return f'<details class="outline" open><summary>Outline</summary><ol>{items}</ol></details>'


def _note(note: Note) -> str:
    pressed = "true" if note.flag else "false"
    return (
        '<section><h2>Note</h2><form id="note"><label class="visually-hidden" for="note-text">Note</label>'
        f'<textarea id="note-text" rows="3" maxlength="{MOST_CHARACTERS}" dir="auto">{html(note.text)}</textarea>'
        f'<div class="row"><button type="button" id="flag" aria-pressed="{pressed}">Flag</button>'
        "<button>Save note</button></div></form></section>"
    )


def _prompt(view: GroupView) -> str:
    text = shown(view.prompt.text).text
    body = f'<div class="prompt prose" lang="{lang(text)}">{prose(text)}</div>'
    if len(text) > 600:
        return (
            f'<details class="prompt-box"><summary>Prompt: <bdi>{html(clip(text, 120))}</bdi></summary>{body}</details>'
        )
    return f'<section class="prompt-box" aria-label="Prompt"><h2>Prompt</h2>{body}</section>'


def _text(view: GroupView, member: Member) -> str:
    """Returns the whole response: thinking and answer apart, what stands outside of them marked as such."""
    seen = shown(member.text)
    parts = []
    for kind, start, end in segments(view, member):
        low, high = seen.place(start), seen.place(end)
        piece = seen.text[low:high]
        if not piece.strip():
            continue
        body = f'<div class="prose" lang="{lang(piece)}">{prose(piece, low)}</div>'
        if kind == "think":
            units = count_units(piece)
            parts.append(
                f'<details class="think" id="think"><summary>Thinking <small>{units:,} words</small></summary>{body}</details>'
            )
        elif kind == "answer":
            parts.append(f'<article class="answer" id="answer" aria-label="Answer"><h2>Answer</h2>{body}</article>')
        else:
            parts.append(
                f'<section class="outside" aria-label="Outside of think and answer"><h2>Outside of the tags</h2>{body}</section>'
            )
    return "".join(parts) or '<p class="soft">The text is empty.</p>'


def segments(view: GroupView, member: Member) -> list[tuple[str, int, int]]:
    """Returns (kind, start, end) of think, answer and what is outside, in order, in the original text.

    The tags themselves belong to no segment. A response whose parsed parts cannot be found is outside as a whole.
    """
    parsed = view.parsed(member)
    found: list[tuple[str, int, int]] = []
    at = 0
    for kind, text, tag in (("think", parsed.think, "<think>"), ("answer", parsed.answer, "<answer>")):
        if text is None:
            continue
        start = member.text.rfind(tag + text) if text else member.text.find(tag, at)
        if start < at:
            return [("outside", 0, len(member.text))]
        _add_outside(found, member.text, at, start)
        start += len(tag)
        found.append((kind, start, start + len(text)))
        at = start + len(text)
        closing = tag.replace("<", "</")
        at += len(closing) if member.text.startswith(closing, at) else 0
    _add_outside(found, member.text, at, len(member.text))
    return found


def _add_outside(found: list[tuple[str, int, int]], text: str, start: int, end: int) -> None:
    if text[start:end].strip():
        found.append(("outside", start, end))


def _end(member: Member) -> str:
    names = {"length": "cut off at the token limit", "guard": "stopped by the guard", "abort": "aborted"}
    return names.get(member.reason, f"by {member.stop}" if member.stop else "by its end-of-text token")


def _weights(member: Member) -> str:
    first, last = member.versions
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _advantage(member: Member) -> str:
    parts = ", ".join(f"{name} {value:+.3g}" for name, value in member.parts.items() if value)
    return f"{member.advantage:+.3g}" + (f": {parts}" if parts else "")


def _guard(alarm: Alarm) -> str:
    return f"{alarm.rule} at token {alarm.position}" + (", stopped" if alarm.stopped else "")
