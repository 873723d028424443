"""What `--profile` found, for the report: where the time of the steps goes, the longest operators and waits."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from megatron_lwz.errors import DataError
from megatron_lwz.profiling.operators import Operators, Total
from megatron_lwz.profiling.summary import Summary, summary_from
from megatron_lwz.reading import read_object
from megatron_lwz.report.evaluation import table
from megatron_lwz.run_paths import RunPaths


def panel(paths: RunPaths) -> str:
    """Returns the figures of all profiles in the run folder, "" without one. Raises DataError."""
    return "".join(_profile(paths, file) for file in paths.profile_summaries())


def read_profile(file: Path) -> Summary:
    """Returns the figures of one profile. Raises DataError."""
    try:
        return summary_from(read_object(file))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(file, f"no summary of a profile ({error!r}): delete it, or profile again") from error


def _profile(paths: RunPaths, file: Path) -> str:
    found = read_profile(file)
    steps = f"{found.steps[0]}-{found.steps[-1]}"
    trace = paths.profile_trace(steps).relative_to(paths.root)
    count = f"{len(found.steps)} steps" if len(found.steps) > 1 else "1 step"
    note = f"Steps {steps}: {count} in {found.seconds:.3g} s. {trace}: open it in ui.perfetto.dev."
    return (
        f'<p class="note">{escape(note)}</p>'
        + _phases(found)
        + _waits(found)
        + _services(found)
        + "".join(_operators(rank, part) for rank, part in found.operators.items())
    )


def _phases(found: Summary) -> str:
    names = list(dict.fromkeys(name for part in found.phases.values() for name in part))
    wholes = {rank: sum(part.values()) or 1.0 for rank, part in found.phases.items()}
    rows = [
        (name, *(_share(part.get(name, 0.0), wholes[rank]) for rank, part in found.phases.items())) for name in names
    ]
    rows += [(f"weight_sync: {name}", _share(seconds, wholes["0"]), *(len(wholes) - 1) * ["–"])
             for name, seconds in found.sync.items()]  # fmt: skip
    head = ("phase", *(f"rank {rank}: share (s)" for rank in found.phases))
    return _titled("Time of the steps", table(head, rows))


def _waits(found: Summary) -> str:
    rows = [
        (f"step {wait.step}, {wait.phase}", _seconds(wait.seconds), f"{wait.at:.3f}", _percent(wait.engines), _percent(wait.rewards))
        for wait in found.waits
    ]  # fmt: skip
    head = ("", "s", "begins at, s", "an engine works", "a reward works")
    return _titled("Longest waits of rank 0", table(head, rows)) if rows else ""


def _services(found: Summary) -> str:
    rows = [
        (each.name, each.calls, each.tokens or "–", _seconds(each.seconds), _percent(each.busy))
        for each in found.services
    ]
    head = ("", "calls", "tokens", "s per call", "works")
    return _titled("Engines and rewards", table(head, rows)) if rows else ""


def _operators(rank: str, found: Operators) -> str:
    titled = _titled(f"Rank {rank}: longest operators of the host", _totals(found.host)) if found.host else ""
    if found.gpu_busy is None:
        return titled
    return titled + _titled(f"Rank {rank}: longest on the GPU, busy for {found.gpu_busy:.3g} s", _totals(found.gpu))


def _totals(rows: Sequence[Total]) -> str:
    return table(("", "calls", "s"), [(row.name, row.calls, _seconds(row.seconds)) for row in rows])


def _titled(title: str, content: str) -> str:
    return f"<h3>{escape(title)}</h3>{content}"


def _share(seconds: float, whole: float) -> str:
    return f"{_percent(seconds / whole)} ({_seconds(seconds)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _seconds(value: float) -> str:
    return f"{value:.3g}"
