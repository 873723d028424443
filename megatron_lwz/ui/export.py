"""A rollout as a Markdown file, to pass on. The texts stand in fences, so nothing in them acts as markup."""

from __future__ import annotations

import re
from collections.abc import Mapping

from megatron_lwz.report.axes import short
from megatron_lwz.report.text import clip, shown
from megatron_lwz.types import ComponentScore
from megatron_lwz.ui.notes import Note
from megatron_lwz.ui.rollouts import read_group
from megatron_lwz.ui.run import Run


def markdown(run: Run, group: int, rollout: int) -> str | None:
    """Returns the file's text; None if the rollout does not exist or is unfinished. Raises DataError."""
    index = run.index()
    view = read_group(index, group, only=rollout) if index is not None else None
    if view is None or rollout not in view.members:
        return None
    member = view.members[rollout]
    parsed = view.parsed(member)
    facts = {
        "run": run.title,
        "prompt": view.prompt.id,
        "asked": f"{view.prompt.length.lower} to {view.prompt.length.upper}" if view.prompt.length else "",
        "tokens": str(member.tokens),
        "ended": member.reason,
        "fault": parsed.fault or "",
        "trained on at step": str(view.step) if view.step is not None else "",
        "weights of steps": f"{member.versions[0]} to {member.versions[1]}",
    }
    scores = {name: short(score.value) if score.valid else "masked" for name, score in member.scores.items()}
    lines = [f"- {key}: {_code(value)}" for key, value in facts.items() if value]
    lines += [f"- score {_code(name)}: {value}" for name, value in scores.items()]
    parts = [f"# Rollout {group}.{rollout}", "\n".join(lines)]
    parts += _noted(run.notes.get(group, rollout))
    parts += _judged(member.scores)
    texts = {"Prompt": view.prompt.text, "Thinking": parsed.think, "Answer": parsed.answer}
    if parsed.answer is None or parsed.fault:
        texts["Whole response"] = member.text
    parts += [f"## {title}\n\n{fenced(text)}" for title, text in texts.items() if text]
    return "\n\n".join(parts) + "\n"


def fenced(text: str) -> str:
    """Returns the text in a fence that is longer than any row of backticks in it."""
    visible = shown(text).text
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", visible)), default=0))
    return f"{fence}text\n{visible.strip(chr(10))}\n{fence}"


def _judged(scores: Mapping[str, ComponentScore]) -> list[str]:
    """Returns what judges say, a section for each component that has reasons."""
    found = []
    for name, score in scores.items():
        lines = "\n\n".join(f"{about}: {said}" if about else said for about, said in score.reasons)
        found += [f"## Judge: {_code(name)}\n\n{fenced(lines)}"] if lines else []
    return found


def _code(text: str) -> str:
    return f"`{clip(shown(text).text, 200).replace('`', chr(39))}`"


def _noted(note: Note) -> list[str]:
    flag = ["Flagged."] if note.flag else []
    return flag + ([f"## Note\n\n{fenced(note.text)}"] if note.text.strip() else [])
