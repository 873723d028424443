"""A rollout of the journal as the report shows it: prompt, facts, scores with the judge's words, thinking and answer."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_lwz.data.text.grammar import parse_rollout
from megatron_lwz.data.text.length import count_units
from megatron_lwz.report.axes import short
from megatron_lwz.report.blocks import lang, prose
from megatron_lwz.report.scores import score_table
from megatron_lwz.report.text import html, shown
from megatron_lwz.types import Alarm, ComponentScore, Group


def median_member(group: Group) -> int:
    """Returns the index of the rollout of median total score: neither the best nor the worst."""
    order = sorted(range(len(group.rollouts)), key=lambda index: (total(scores_of(group, index)), index))
    return order[len(order) // 2]


def scores_of(group: Group, index: int) -> Mapping[str, ComponentScore]:
    """Returns the scores of a rollout; empty if the group has none."""
    return group.scores[index] if group.scores else {}


def total(scores: Mapping[str, ComponentScore]) -> float:
    """Returns the sum of the valid scores."""
    return sum(score.value for score in scores.values() if score.valid)


def words_of(group: Group, index: int) -> int:
    """Returns the length of the answer, else of the whole response, in words and CJK characters."""
    rollout = group.rollouts[index]
    answer = parse_rollout(group.prompt, rollout).answer
    return count_units(rollout.text if answer is None else answer)


def reading(group: Group, index: int) -> str:
    """Returns a rollout in full. All text is escaped, and characters that hide or reorder text are spelled out."""
    rollout, scores = group.rollouts[index], scores_of(group, index)
    parsed = parse_rollout(group.prompt, rollout)
    parts = [f'<div class="prompt">{_text(group.prompt.text)}</div><div class="facts">{facts(group, index)}</div>']
    if any(score.details or score.reasons for score in scores.values()):
        parts.append(f"<details><summary>Scores</summary>{score_table(scores)}</details>")
    if parsed.think:
        think = _text(parsed.think.strip())
        parts.append(f'<details><summary>Thinking</summary><div class="think">{think}</div></details>')
    parts.append(_text((parsed.answer if parsed.answer is not None else rollout.text).strip()))
    return "".join(parts)


def facts(group: Group, index: int) -> str:
    """Returns lengths, end, scores, alarms and fault of a rollout in one line of HTML."""
    rollout = group.rollouts[index]
    found = [f"{len(rollout.tokens)} tokens"] if rollout.tokens else []
    found.append(f"ended by {html(rollout.stop or rollout.finish_reason.value)}")
    if group.prompt.length:
        found.append(f"asked {group.prompt.length.lower} to {group.prompt.length.upper}")
    scores = scores_of(group, index)
    if "words" in (details := scores.get("length", ComponentScore(0.0)).details):
        found.append(f"wrote {details['words']:g}")
    found += [f"{html(name)} {short(s.value) if s.valid else 'masked'}" for name, s in scores.items()]
    found += [_alarm(alarm) for alarm in rollout.alarms]
    fault = parse_rollout(group.prompt, rollout).fault
    return " · ".join(found + ([f"fault: {html(fault)}"] if fault else []))


def _text(text: str) -> str:
    visible = shown(text).text
    return f'<div class="prose" lang="{lang(visible)}">{prose(visible)}</div>'


def _alarm(alarm: Alarm) -> str:
    rule, place = html(alarm.rule), f"at token {alarm.position}"
    if not alarm.stopped:
        return f"guard: {rule} {place}, went on"
    return f"guard: {rule}, stopped {place}" + (", scores given" if alarm.scores else "")
