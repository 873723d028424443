"""All rollouts of one group side by side."""

from __future__ import annotations

from megatron_lwz.data.text.sameness import sameness
from megatron_lwz.report.axes import short
from megatron_lwz.report.blocks import lang, prose
from megatron_lwz.report.scores import score_table
from megatron_lwz.report.text import html, shown
from megatron_lwz.ui.pages.layout import page as whole_page
from megatron_lwz.ui.pages.reading import facts
from megatron_lwz.ui.rollouts import GroupView, Member, read_group
from megatron_lwz.ui.run import Run


def page(run: Run, group: int) -> str | None:
    """Returns the page; None if the journal has no such group. Raises DataError."""
    index = run.index()
    view = read_group(index, group) if index is not None else None
    if view is None:
        return None
    where = f"/runs/{run.name}"
    crumbs = [("Runs", "/"), (run.title, where), ("Rollouts", f"{where}/rollouts")]
    order = sorted(view.members.values(), key=lambda member: -_total(member))
    answers = [_answer(view, member) for member in order]
    alike = sameness(answers)
    said = f"{len(order)} of {view.size} rollouts" + (
        f", {alike:.0%} of their 4-grams shared" if alike is not None else ""
    )
    prompt = shown(view.prompt.text).text
    columns = "".join(_column(where, view, member, answer) for member, answer in zip(order, answers, strict=True))
    body = (
        f'<h1>Group {group}</h1><section class="prompt-box" aria-label="Prompt">'
        f'<div class="prose" lang="{lang(prompt)}">{prose(prompt)}</div></section>'
        f'<p class="note">{html(said)}, highest sum of scores first.</p>'
        f'<div class="columns" tabindex="0" role="group" aria-label="Rollouts side by side">{columns}</div>'
    )
    attributes = f'data-list="{where}/rollouts" data-run="{html(run.name)}"'
    return whole_page(
        f"Group {group}", body, crumbs=crumbs, kind="siblings", scripts=("list.js",), attributes=attributes
    )


def _column(where: str, view: GroupView, member: Member, answer: str) -> str:
    text = shown(answer).text
    return (
        f'<article class="column" aria-label="Rollout {member.index}"><header><h2><a href="{where}/rollouts/{view.id}/{member.index}">'
        f"#{view.id}.{member.index}</a> <small>sum {short(_total(member))}</small></h2>{score_table(member.scores)}"
        f"<details><summary>Facts</summary>{facts(view, member, answer)}</details></header>"
        f'<div class="prose" lang="{lang(text)}" tabindex="0" role="region" aria-label="Text of rollout {member.index}">'
        f"{prose(text)}</div></article>"
    )


def _answer(view: GroupView, member: Member) -> str:
    answer = view.parsed(member).answer
    return member.text if answer is None else answer


def _total(member: Member) -> float:
    return sum(score.value for score in member.scores.values() if score.valid)
