"""ConStory-Bench (2603.05890): how often a long story contradicts itself, by a judge that quotes, and by rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron_lwz.data.text.consistency import find_contradictions
from megatron_lwz.data.text.length import count_units
from megatron_lwz.evaluation.asking import Shown, ask_each
from megatron_lwz.evaluation.constory_files import (
    CATEGORIES,
    COLUMNS,
    CONTENT,
    DURATIONS,
    QUERY,
    Errors,
    Story,
    as_errors,
)
from megatron_lwz.evaluation.judge_prompts import SYSTEM, digest
from megatron_lwz.evaluation.statistics import Estimate, estimate, ratio
from megatron_lwz.rewards.judge_client import Judge, Question, mark
from megatron_lwz.rewards.judge_json import read_objects

MEASURED = {
    "rules": "contradictions that rules find, per 10,000 words + CJK characters",
    "length": "length, words + CJK characters",
}
"""Metrics without a judge, by their names in tables."""
LABELS = {
    "ced": "CED: kinds of errors per 10,000 words",
    "ced_public": "CED as the public script counts: without contradictions of durations",
    "ced_units": "CED per 10,000 words + CJK characters",
    **{f"ced_{category}": f"CED, {name}" for category, (name, _) in CATEGORIES.items()},
    "errors": "errors per story",
    "quoted": "errors whose quotation stands in the story",
    "fact_position": "position of the quotation, share of the story",
    "contradiction_position": "position of what it contradicts",
    "gap": "distance between the two",
    **MEASURED,
}
"""Maps each metric to its name in tables."""
PARTS = 8
"""Parts of a story for the distribution of errors over the position."""
PER = 10_000
_PARTIAL = 50
"""Characters of a quotation that are looked for where the whole is not found, as in the public script."""
VERSION = "lwz-contradictions-1"
_MEANINGS: Mapping[str, str] = {
    "memory_contradictions": "somebody forgets or misremembers what they lived through in the story",
    "knowledge_contradictions": "somebody knows what they cannot know, or does not know what they were told",
    "skill_power_fluctuations": "a skill or strength is much greater or smaller than before, without a reason",
    "forgotten_abilities": "an ability or object that would solve the matter is forgotten, without a reason",
    "appearance_mismatches": "looks of a person, thing or place change",
    "nomenclature_confusions": "names or titles change, or are given to somebody else",
    "quantitative_mismatches": "ages, counts, sums, sizes or distances do not agree",
    "perspective_confusions": "the narrator or the point of view changes without intent",
    "tone_inconsistencies": "the tone breaks without a reason in the story",
    "style_shifts": "the way of writing or the form changes without intent",
    "absolute_time_contradictions": "dates, days or times of day exclude each other",
    "duration_timeline_contradictions": "how long something takes does not agree with what happens in it",
    "simultaneity_contradictions": "somebody is in two places at once, or events overlap that cannot",
    "causeless_effects": "something happens without anything that could bring it about",
    "causal_logic_violations": "a consequence does not follow, or comes before its cause",
    "abandoned_plot_elements": "a thread that the story calls important is dropped",
    "core_rules_violations": "a rule that the story sets for its world is broken, without a reason",
    "social_norms_violations": "customs or ranks that the story sets are ignored, without a reason",
    "geographical_contradictions": "places, directions or ways do not agree",
}
_OURS = """Read this story from beginning to end and look for places where it contradicts itself:

{story}

Look for errors of these kinds only:
{kinds}

What the story intends (a lie, a dream, irony, a change that it explains) is no error, and a story may well have none. Quote word \
for word, the shortest passage that shows the error. Answer with one JSON object that has every kind as a key:

{{{keys}}}

In place of … stands one object per error: {{"exact_quote": "the passage", "contradiction_pair": "the earlier passage that it \
contradicts, or empty", "context": "what cannot be true, in one sentence"}}. A kind without errors has []."""


@dataclass(frozen=True)
class ConStoryReport:
    """Estimates by metric and by task type, errors over the position, and a row per story."""

    metrics: Mapping[str, Estimate]
    positions: Sequence[Estimate | None]
    rows: Sequence[Mapping[str, Any]]
    unjudged: int

    def as_json(self) -> dict[str, Any]:
        """Returns the content of constory.json. Rows are stored in a separate file."""
        metrics = {name: value.as_json() for name, value in self.metrics.items()}
        places = [value.as_json() if value is not None else None for value in self.positions]
        return {"kind": "constory", "metrics": metrics, "positions": places, "unjudged": self.unjudged}


async def check_stories(
    stories: Sequence[Story],
    judge: Judge,
    *,
    templates: Mapping[str, str] | None = None,
    shown: Shown = lambda *_: None,
) -> list[dict[str, list[dict[str, Any]]] | None]:
    """Asks one question per story and category. `templates` are the public questions.

    Returns the errors by column; None for a story where a category got no verdict, because the others would count too
    few. Raises EngineError for a judge that answers nothing.
    """
    asked = [(place, category) for place in range(len(stories)) for category in CATEGORIES]
    questions = [contradictions_question(stories[place].text, category, templates) for place, category in asked]
    reads = [partial(read_errors, category=category) for _, category in asked]
    found: list[dict[str, list[dict[str, Any]]] | None] = [{} for _ in stories]
    for (place, _), verdict in zip(asked, await ask_each(judge, questions, reads, shown), strict=True):
        errors = found[place]
        if verdict is None:
            found[place] = None
        elif errors is not None:
            errors |= verdict.value
    return found


def contradictions_question(story: str, category: str, templates: Mapping[str, str] | None) -> Question:
    """Returns the question for the errors of one category. `templates` are the public questions by category."""
    name, subtypes = CATEGORIES[category]
    if templates is not None:
        # As in the public script: one message, its chat marks unchanged.
        asked = templates[category].replace(QUERY, f"{name} Analysis").replace(CONTENT, story)
        return Question(asked, f"constory@{digest(templates[category])}")
    kinds = "\n".join(f"- {subtype}: {_MEANINGS[subtype]}" for subtype in subtypes)
    keys = ", ".join(f'"{subtype}": […]' for subtype in subtypes)
    return Question(_OURS.format(story=mark(story), kinds=kinds, keys=keys), VERSION, SYSTEM)


def read_errors(reply: str, category: str) -> dict[str, list[dict[str, Any]]] | None:
    """Returns the errors of a reply by column, None for a reply without any of the category's subtypes.

    A subtype that the reply leaves out has no errors, as in the public script.
    """
    _, subtypes = CATEGORIES[category]
    keys = {subtype: DURATIONS if subtype in DURATIONS else (subtype,) for subtype in subtypes}
    objects = [one for one in read_objects(reply, ()) if any(key in one for names in keys.values() for key in names)]
    if not objects:
        return None
    given = objects[-1]
    return {
        f"{category}_{subtype}": [error for name in names for error in as_errors(given.get(name, []))]
        for subtype, names in keys.items()
    }


def summarise(stories: Sequence[Story], errors: Sequence[Errors | None] | None) -> ConStoryReport:
    """Returns the figures. `errors` holds those of each story, None without a judge.

    ced: the mean over stories of the number of subtypes with an error, per 10,000 words between white space. The densities of
    categories are pooled: all errors over all words. Positions are shares of the story, of errors both of whose quotations
    are found in it.
    """
    rows = [_rules(story) for story in stories]
    for row, story, found in zip(rows, stories, errors or [], strict=False):
        if found is not None:
            row |= _judged(story, found)
    judged = [row for row in rows if "ced" in row]
    metrics: dict[str, Estimate | None] = {}
    for name in ("ced", "ced_public", "ced_units", "errors", *MEASURED):
        metrics[name] = _mean([row for row in rows if name in row], name)
    for category in CATEGORIES:
        densities = [PER * row["kinds"][category] for row in judged]
        metrics[f"ced_{category}"] = ratio(densities, [row["words"] for row in judged])
    placed = [place | {"id": row["id"]} for row in judged for place in row["places"]]
    metrics["quoted"] = ratio([row["found"] for row in judged], [row["errors"] for row in judged])
    for name in ("fact_position", "contradiction_position", "gap"):
        metrics[name] = _mean(placed, name)
    kept = {name: value for name in LABELS if (value := metrics.get(name)) is not None}
    for kind in sorted({row["task_type"] for row in judged if row["task_type"]}):
        if (value := _mean([row for row in judged if row["task_type"] == kind], "ced")) is not None:
            kept[f"ced, {kind}"] = value
    unjudged = len(rows) - len(judged) if errors is not None else 0
    return ConStoryReport(kept, _positions(judged), rows, unjudged)


def _rules(story: Story) -> dict[str, Any]:
    length = count_units(story.text)
    _, found = find_contradictions(story.text)
    row: dict[str, Any] = {"id": story.id, "sample": 0, "task_type": story.kind, "length": length}
    return row | ({"rules": PER * len(found) / length} if length else {})


def _judged(story: Story, errors: Errors) -> dict[str, Any]:
    words, plain = len(story.text.split()), _plain(story.text)
    kinds = {
        category: sum(bool(errors.get(f"{category}_{subtype}")) for subtype in subtypes)
        for category, (_, subtypes) in CATEGORIES.items()
    }
    listed = [one for column in COLUMNS for one in errors.get(column, ())]
    places = []
    found = 0
    for one in listed:
        first, other = (find_quotation(plain, one.get(key)) for key in ("exact_quote", "contradiction_pair"))
        found += first is not None
        if first is not None and other is not None:
            places.append({"fact_position": first, "contradiction_position": other, "gap": abs(first - other)})
    ced, durations = sum(kinds.values()), bool(errors.get(f"timeline_plot_{DURATIONS[0]}"))
    row = {"words": words, "errors": len(listed), "found": found, "kinds": kinds, "places": places}
    row |= {"ced": PER * ced / words, "ced_public": PER * (ced - durations) / words}
    return row | ({"ced_units": PER * ced / units} if (units := count_units(story.text)) else {})


def find_quotation(plain: str, quotation: Any) -> float | None:
    """Returns where a quotation begins in a text, as a share of its length, None if it is not there.

    `plain`: the text with single spaces. A long quotation is also found by its first 50 characters, as in the public script.
    """
    listed = quotation if isinstance(quotation, list) else [quotation]
    said = _plain(" ".join(part for part in listed if isinstance(part, str)))
    if not said:
        return None
    place = plain.find(said)
    place = place if place >= 0 else plain.find(said[:_PARTIAL])
    return place / len(plain) if place >= 0 else None


def _positions(rows: Sequence[Mapping[str, Any]]) -> list[Estimate | None]:
    """Returns the errors per story whose later passage begins in each of PARTS parts."""
    found = []
    for part in range(PARTS):
        inside = [
            sum(part <= max(p["fact_position"], p["contradiction_position"]) * PARTS < part + 1 for p in row["places"])
            for row in rows
        ]
        found.append(estimate(inside, [row["id"] for row in rows]))
    return found


def _plain(text: str) -> str:
    return " ".join(text.split())


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> Estimate | None:
    return estimate([row[name] for row in rows], [row["id"] for row in rows])
