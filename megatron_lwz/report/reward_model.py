"""The page of a training on preference pairs, of a reward model or of a policy: accuracy by kind, calibration, scores, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from megatron_lwz.config import load_config
from megatron_lwz.errors import DataError
from megatron_lwz.evaluation.statistics import Estimate
from megatron_lwz.metrics import Row, read_history
from megatron_lwz.reading import read_object, read_rows
from megatron_lwz.report.axes import Frame, short
from megatron_lwz.report.charts import curves, histogram
from megatron_lwz.report.evaluation import charts, number, table, write_page
from megatron_lwz.report.evaluation_charts import figure, intervals
from megatron_lwz.report.profile import panel
from megatron_lwz.run_paths import RunPaths

_KIND = "validation/accuracy/"


REWARD_MODEL = "a reward model learns to tell the better of two texts"
POLICY = "a policy learns to prefer the better of two replies"


def build_reward_report(root: Path, lead: str = REWARD_MODEL) -> Path:
    """Writes `report.html` into the run folder and returns its path. Raises DataError or ConfigError."""
    config = load_config(RunPaths(root).config)
    rows, summary = read_history(root), read_summary(root)
    target = RunPaths(root).report
    try:
        held_out = _held_out(root, summary) if summary is not None else ""
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(RunPaths(root).held_out_summary, f"not what a run on pairs writes ({error!r})") from error
    sections = {"Held-out pairs": held_out, "Training": charts(*_training(rows))}
    sections["Profile"] = panel(RunPaths(root))
    write_page(target, config.run.name or root.resolve().name, lead, sections)
    return target


def read_summary(root: Path) -> dict[str, Any] | None:
    """Returns the run's held_out.json; None for a run without held-out pairs. Raises DataError."""
    path = RunPaths(root).held_out_summary
    return read_object(path) if path.is_file() else None


def _held_out(root: Path, summary: Mapping[str, Any]) -> str:
    kinds = {name: Estimate(**share) for name, share in summary["by_kind"].items()}
    alone = summary["length_baseline_by_kind"]
    whole = Estimate(**summary["accuracy"])
    lines = [("all", whole, summary["length_baseline"]), *((name, share, alone[name]) for name, share in kinds.items())]
    rows = [(name, number(e.value), f"{number(e.low)} … {number(e.high)}", number(a), e.count) for name, e, a in lines]
    others = {name: Estimate(**share) for key in ("by_language", "by_source") for name, share in summary[key].items()}
    chosen, rejected = _scores(root)
    return table(("", "accuracy", "95 % interval", "length alone", "pairs"), rows) + charts(
        intervals("Accuracy by kind", kinds),
        intervals("Accuracy by language and source", others),
        calibration_chart(summary["calibration"], summary["calibration_error"]),
        histogram("Scores", _shifted(chosen, rejected), x_label="score above the lowest"),
    )


def calibration_chart(bins: Sequence[Mapping[str, Any]], error: float) -> str:
    """Plots how often the better-scored text was the chosen one, against the probability that the scores imply."""
    frame = Frame(50.0, 100.0, 0.0, 1.0)
    parts = [f'<path class="diagonal" d="M{frame.x(50)},{frame.y(0.5)} L{frame.x(100)},{frame.y(1.0)}"/>']
    most = max((found["pairs"] for found in bins), default=1) or 1
    points = []
    for found in bins:
        if not found["pairs"]:
            continue
        x, y = frame.x(100 * found["predicted"]), frame.y(found["observed"])
        points.append(f"{x:.1f},{y:.1f}")
        note = f"said {found['predicted']:.2f}, right {found['observed']:.2f}, {found['pairs']} pairs"
        radius = 3 + 5 * (found["pairs"] / most) ** 0.5
        parts.append(
            f'<circle class="dot s0" fill-opacity="0.6" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(note)}</title></circle>'
        )
    if len(points) > 1:
        parts.append(f'<path class="line s0" d="M{" L".join(points)}"/>')
    title = "Calibration"
    svg = frame.draw(parts, x_label="probability said, %: σ(|difference of the scores|)", title=title)
    return figure(title, svg, f"share that was right; mean gap {short(round(error, 3))}; a larger dot holds more pairs")


def _training(rows: Sequence[Row]) -> list[str]:
    def series(*names: str) -> dict[str, list[tuple[float, float]]]:
        return {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}

    kinds = sorted({key for row in rows for key in row if key.startswith(_KIND)})
    by_kind = {name.removeprefix(_KIND): points for name, points in series(*kinds).items()}
    return [
        curves("Loss", series("loss", "validation/loss")),
        curves("Accuracy", series("accuracy", "validation/accuracy"), share=True),
        curves("Held-out accuracy by kind", by_kind, share=True),
        curves("Scores", series("chosen", "rejected")),
        curves("Log-probs per token", series("chosen_logprob", "rejected_logprob")),
        curves("Log-probs per token, less those of the initial policy", series("chosen_drift", "rejected_drift")),
        curves("Gradient norm", series("grad_norm")),
        curves("Tokens per second", series("tokens_per_second")),
    ]


def _scores(root: Path) -> tuple[list[float], list[float]]:
    scores: list[tuple[float, float]] = []
    for row in read_rows(RunPaths(root).held_out):
        try:
            scores.append((float(row.value["chosen"]), float(row.value["rejected"])))
        except (ValueError, KeyError, TypeError) as error:
            raise row.error(f"needs the scores 'chosen' and 'rejected' ({error!r})") from error
    return [chosen for chosen, _ in scores], [rejected for _, rejected in scores]


def _shifted(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, list[float]]:
    """Shifts the scores to start at 0, as histograms do. Scores have no natural zero."""
    low = min([*chosen, *rejected], default=0.0)
    return {"chosen": [value - low for value in chosen], "rejected": [value - low for value in rejected]}
