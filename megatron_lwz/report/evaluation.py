"""The page of an evaluation: one self-contained HTML file in the look of the run report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from megatron_lwz.evaluation.arena_write import LABELS as ARENA_LABELS
from megatron_lwz.evaluation.arena_write import ArenaReport
from megatron_lwz.evaluation.hello_bench import MEASURED, HelloReport
from megatron_lwz.evaluation.longbench_write import LABELS as LONGBENCH_LABELS
from megatron_lwz.evaluation.longbench_write import LongBenchReport, RulerStep
from megatron_lwz.evaluation.measure import LABELS, TextReport
from megatron_lwz.evaluation.statistics import Estimate
from megatron_lwz.evaluation.writing_bench_files import LEADERBOARD_JUDGES, leaderboard_since
from megatron_lwz.report import page
from megatron_lwz.report.evaluation_charts import intervals, length_scatter, matrix

_POINTS = 3000
"""Most points of one scatter plot, so that the file stays small."""
_LEVELS = ("Domain1", "Domain2")
"""Prefixes of the column names of WritingBench's two levels of domains."""


def write_page(path: Path, title: str, lead: str, sections: Mapping[str, str]) -> None:
    """Writes the page, whole or not at all. `sections` maps heading → HTML; empty ones are left out."""
    body = "".join(f"<section><h2>{escape(name)}</h2>{html}</section>" for name, html in sections.items() if html)
    page.write_page(path, title, f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{body}')


def charts(*figures: str) -> str:
    """Places figures side by side."""
    kept = "".join(figures)
    return f'<div class="charts">{kept}</div>' if kept else ""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a plain table with every cell escaped."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = ("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table><tr>{top}</tr>{"".join(lines)}</table></div>'


def number(value: float) -> str:
    """Formats a figure for a table."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def estimates_table(estimates: Mapping[str, Estimate], labels: Mapping[str, str] | None = None) -> str:
    """Returns a table of name, mean, 95 % interval, count."""
    rows = [
        ((labels or {}).get(name, name), number(e.value), f"{number(e.low)} … {number(e.high)}", e.count)
        for name, e in estimates.items()
    ]
    return table(("", "mean", "95 % interval", "n"), rows)


def text_sections(found: TextReport) -> dict[str, str]:
    """Returns the sections of an evaluation without a judge."""
    points = [((row["asked_lower"] + row["asked_upper"]) / 2, row["length"]) for row in found.rows if "s_l" in row]
    curve = [(bucket.asked.value, bucket.written.value) for bucket in found.curve]
    scores = {_range(bucket.lower, bucket.upper): bucket.score for bucket in found.curve}
    shares = {LABELS[name]: e for name, e in found.metrics.items() if name not in ("length", "s_l")}
    faults = table(("first fault", "responses"), list(found.faults.items())) if found.faults else ""
    return {
        "Metrics": estimates_table(found.metrics, LABELS),
        "Length asked, length written": charts(
            length_scatter("Length asked, length written", points[:_POINTS], curve),
            intervals("S_l by length asked", scores),
        ),
        "Shares": charts(intervals("Shares of responses and of their parts", shares)),
        "Format faults": faults,
    }


def _range(lower: int, upper: int | None) -> str:
    return f"{lower} and more" if upper is None else f"{lower} to {upper}"


def longbench_sections(found: LongBenchReport, steps: Sequence[RulerStep]) -> dict[str, str]:
    """Returns the sections of LongBench-Write and LongWrite-Ruler."""
    points = [(row["asked"], row["length"]) for row in found.rows if "asked" in row]
    by_length = {
        f"{name} by length asked": {group: metrics[key] for group, metrics in found.by_length.items() if key in metrics}
        for key, name in (("s_l", "S_l"), ("s_q", "S_q"))
    }
    ruler = [(step.asked, f"{step.mean:.0f}", step.longest, step.count) for step in steps]
    curve = [(step.asked, step.mean) for step in steps]
    return {
        "Scores": estimates_table(found.metrics, LONGBENCH_LABELS),
        "Length asked, length written": charts(
            length_scatter("Length asked, length written", points[:_POINTS]),
            *(intervals(title, values) for title, values in by_length.items()),
        ),
        "LongWrite-Ruler": table(("asked", "mean written", "longest", "n"), ruler)
        + charts(length_scatter("Mean length written", curve, curve))
        if steps
        else "",
        "Not judged": f"<p>{found.unjudged} responses got no verdict.</p>" if found.unjudged else "",
    }


def writing_bench_sections(found: Mapping[str, Estimate], judge: str) -> dict[str, str]:
    """Returns the sections of WritingBench: scores with requirements, the judge, and the two levels of domains."""
    levels = {
        level: {n.removeprefix(f"{level}_"): e for n, e in found.items() if n.startswith(level)} for level in _LEVELS
    }
    main = {name: e for name, e in found.items() if not name.startswith(_LEVELS)}
    domains, subdomains = (levels[level] for level in _LEVELS)
    return {
        "Scores, 1 to 10": estimates_table(main)
        + charts(intervals("Overall and requirements", main), intervals("Domains", domains)),
        "The judge": f"<p>{escape(leaderboard_note(judge))}</p>"
        + table(("the public leaderboard, from", "judge"), list(LEADERBOARD_JUDGES.items())),
        "Domains": estimates_table(domains),
        "Subdomains": f"<details><summary>{len(subdomains)} subdomains</summary>{estimates_table(subdomains)}</details>",
    }


def hello_sections(found: HelloReport) -> dict[str, str]:
    """Returns the sections of HelloBench: the tasks, and the categories."""
    categories = {n.removeprefix("Category_"): e for n, e in found.metrics.items() if n.startswith("Category_")}
    main = {name: e for name, e in found.metrics.items() if not name.startswith("Category_")}
    scored = {name: e for name, e in main.items() if name not in MEASURED}
    folded = f"<details><summary>{len(categories)} categories</summary>{estimates_table(categories)}</details>"
    return {
        "Scores, (share of the checklist − 75) · 4": estimates_table(main, MEASURED)
        + charts(intervals("Overall and tasks", scored)),
        "Categories": folded if categories else "",
        "Not judged": f"<p>{found.unjudged} responses got no verdict.</p>" if found.unjudged else "",
    }


def leaderboard_note(judge: str) -> str:
    """Says with which figures of the public leaderboard those of a judge compare."""
    since = leaderboard_since(judge)
    if since is None:
        return f"{judge} never judged the public leaderboard, so its figures are on another scale."
    days = [*LEADERBOARD_JUDGES, "now"]
    until = days[days.index(since) + 1]
    return f"{judge} judged the public leaderboard from {since} to {until}; the figures of other days are on another scale."


def arena_sections(found: ArenaReport) -> dict[str, str]:
    """Returns the sections of a tournament: ratings, win rates, and statistics about the judge."""
    names = list(found.elo)
    shares = [[found.win_rates[a].get(b) for b in names] for a in names]
    rows = [
        (n, number(e.value), f"{number(e.low)} … {number(e.high)}", number(found.online[n]), e.count)
        for n, e in found.elo.items()
    ]
    return {
        "Elo": table(("", "Elo", "95 % interval", "online Elo", "games"), rows)
        + charts(
            intervals("Elo, Bradley–Terry", found.elo, note="95 % intervals over prompts, the anchor's is a point"),
            matrix("Win rates", names, shares, note="row against column, ties half"),
        ),
        "The judge": estimates_table({**found.bias, **found.consistency}, ARENA_LABELS),
    }
