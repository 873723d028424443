"""The sections of a curve over the position in the text: where each metric decays, a chart and a table of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_lwz.evaluation.curve import CHANGE, LABELS, CurveReport, Decay
from megatron_lwz.evaluation.statistics import Estimate
from megatron_lwz.report.evaluation import charts, estimates_table, number, table
from megatron_lwz.report.evaluation_charts import positions


def curve_sections(found: CurveReport, x_label: str, names: Mapping[str, str] = LABELS) -> dict[str, str]:
    """Returns the sections of the page. `x_label` says what a part is, `names` maps metrics to their names."""
    drawn = [
        positions(
            names.get(name, name),
            values,
            worse=found.decays[name].part if name in found.decays else None,
            note=verdict(found, name),
            x_label=x_label,
        )
        for name, values in found.curves.items()
    ]
    return {
        "Where it decays": decay_table(found, names),
        "Over the position in the text": charts(*drawn),
        "Every part": _parts_table(found.curves, found.parts, names),
        "Means over the parts, and changes from the first quarter to the last": estimates_table(
            found.metrics, labels(found.metrics, names)
        ),
        "Not judged": f"<p>{found.unjudged} parts got no verdict.</p>" if found.unjudged else "",
    }


def labels(metrics: Mapping[str, Estimate], names: Mapping[str, str] = LABELS) -> dict[str, str]:
    """Returns the names of means and changes in tables."""
    found = {}
    for name in metrics:
        base = name.removeprefix(CHANGE)
        found[name] = names.get(base, base) + (", change" if base != name else "")
    return found


def verdict(found: CurveReport, name: str) -> str:
    """Says in a few words where a metric decays."""
    decay = found.decays.get(name)
    if decay is None:
        return ""
    said = _part(found, decay)
    if decay.part is not None:
        return f"first surely worse than the beginning in {said}"
    return f"{said} is surely worse than the beginning" if any(decay.differences) else f"{said} to compare"


def decay_table(found: CurveReport, names: Mapping[str, str] = LABELS) -> str:
    """Returns the table of metrics with the part from which they decay, and the difference there and in the last part."""
    rows = [
        (names.get(name, name), _part(found, decay), _at(decay, decay.part), _at(decay, found.parts))
        for name, decay in found.decays.items()
    ]
    note = (
        f"<p class='note'>Each part minus the first {found.reference} of the same text; the intervals of all parts of a metric "
        "hold together with 95 %.</p>"
    )
    return note + table(("", "first surely worse in", "difference there", "difference in the last part"), rows)


def _part(found: CurveReport, decay: Decay) -> str:
    if decay.part is None and not any(decay.differences):
        return "too few texts"
    return f"part {decay.part} of {found.parts}" if decay.part is not None else "no part"


def _at(decay: Decay, part: int | None) -> str:
    e = decay.differences[part - 1] if part is not None else None
    return f"{number(e.value)} ({number(e.low)} … {number(e.high)})" if e is not None else "–"


def _parts_table(curves: Mapping[str, Sequence[Estimate | None]], parts: int, names: Mapping[str, str]) -> str:
    rows = [
        (names.get(name, name), *(f"{number(e.value)}" if e is not None else "–" for e in values))
        for name, values in curves.items()
    ]
    return table(("part", *map(str, range(1, parts + 1))), rows)
