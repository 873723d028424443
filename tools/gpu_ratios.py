"""The part `ratios` of `make gpu-check`: time and memory of the log-prob op beside other ways, and its targets.

Our own ways are measured on all shapes first, then the other libraries', so that a slow one costs no figure of ours.
A target that is missed is no failure of the check: the table says so. `docs/kernels.md` lists the targets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import bench_epilogues
import torch
from gpu_findings import Findings, Table, run_part

from megatron_lwz.cli.bench_kernels import COLUMNS, number, rows_of
from megatron_lwz.kernels import settings
from megatron_lwz.kernels.bench.measure import Figure, make_inputs, measure
from megatron_lwz.kernels.bench.ways import Way, peers, standard
from megatron_lwz.units import MIB

Row = tuple[str, str, str, str]
"""(what, measured, target, verdict)."""


@dataclass(frozen=True)
class Shape:
    """T x H x V, and what is aimed at there, as ratios to the bare products or to plain torch."""

    size: str
    policy: str
    workspace_mib: int
    forward: float
    total: float
    memory: float | None
    """Workspace over that of plain torch. None: no target."""


SHAPES = (
    Shape("16384x5120x19008", "32B, one of 8 tensor-parallel ranks", 640, 1.10, 1.12, 0.2),
    Shape("16384x3584x152064", "7B", 1024, 1.10, 1.15, 0.04),
    Shape("32768x896x151936", "0.5B", 1024, 1.45, 1.45, None),
)
TINY = (Shape("96x32x2048", "rehearsal", 8, 1.10, 1.12, 0.2),)
FORWARD_MIB, LOGPROB, GRADIENT = 64, 1e-5, 3e-3
PEERS: Mapping[str, tuple[str, float | None, float | None]] = {
    "verl": ("verl", 2.0, 1.7),
    "Liger FLCE": ("liger-kernel", 7.0, None),
    "Liger GRPO, chunked": ("liger-kernel", 4.0, None),
    "TRL, chunked + entropy": ("trl", 4.0, None),
    "cut-cross-entropy": ("cut-cross-entropy", None, None),
    "cut-cross-entropy, unfiltered": ("cut-cross-entropy", None, None),
    "torch linear_cross_entropy": ("torch", None, None),
}
"""Way → its package, and how many times as long as ours it should take: forward + backward, forward only."""
SLOW = ("cut-cross-entropy, torch.compile",)
"""Compiling alone would take a good part of the time limit."""


def work(findings: Findings, device: str) -> None:
    """Measures epilogues, our ways and then other libraries', and compares with the targets."""
    shapes = SHAPES if device == "cuda" else TINY
    where = torch.device(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    epilogues(findings, where)
    found: dict[Shape, list[Figure]] = {shape: [] for shape in shapes}
    for ways, repeats in ((list(standard()), 3), ([way for way in peers() if way.name not in SLOW], 2)):
        for shape in shapes:
            found[shape] += figures_of(shape, ways, where, dtype, repeats if device == "cuda" else 1)
            show(findings, shape, found[shape], measured=device == "cuda")
    for shape in shapes:
        missing = {"products only", "plain"} - {figure.way for figure in found[shape]}
        if missing or best(found[shape], "separable") is None or best(found[shape], "in forward") is None:
            findings.fail(f"{shape.size}: not measured: {', '.join(sorted(missing)) or 'our own ways'}")


def figures_of(
    shape: Shape, ways: Sequence[Way], device: torch.device, dtype: torch.dtype, repeats: int
) -> list[Figure]:
    """Measures the ways on one shape."""
    settings.put(settings.Settings("torch", shape.workspace_mib * MIB, 0))
    inputs = make_inputs(shape.size, dtype, device)
    figures = measure(shape.size, ways, inputs, repeats)
    if device.type == "cuda":
        del inputs
        torch.cuda.empty_cache()
    return figures


def show(findings: Findings, shape: Shape, figures: list[Figure], *, measured: bool) -> None:
    """Adds both tables of a shape."""
    title = f"T x H x V = {shape.size} ({shape.policy})"
    findings.add(Table(title, COLUMNS, rows_of(figures)))
    rows = list(targets(shape, figures))
    if not measured:
        rows = [(*row[:3], "a rehearsal" if row[3] != "absent" else row[3]) for row in rows]
    ours = [figure.way for path in ("separable", "in forward") if (figure := best(figures, path)) is not None]
    note = f"Ours: {'; '.join(ours)}. A separable way gives the forward figures."
    findings.add(Table(f"Targets at {shape.size}", ("what", "measured", "target", "verdict"), rows, note))
    findings.figures(shape.size, [asdict(figure) for figure in figures])


def targets(shape: Shape, figures: list[Figure]) -> Iterator[Row]:
    """Yields every target of a shape with what was measured."""
    of = {figure.way: figure for figure in figures}
    bare, plain = of.get("products only"), of.get("plain")
    forward, whole = best(figures, "separable"), best(figures, "in forward")
    if forward is None or whole is None or bare is None or plain is None:
        return
    yield at_most("forward only / product", ratio(forward.forward_seconds, bare.forward_seconds), shape.forward)
    yield at_most("forward only, MiB beyond the inputs", forward.forward_mib, FORWARD_MIB)
    yield at_most("largest error of a log-prob, nats", forward.error, LOGPROB)
    yield at_most("forward + backward / products", ratio(whole.total_seconds, bare.total_seconds), shape.total)
    yield at_most("workspace of it, MiB", whole.workspace_mib, shape.workspace_mib)
    yield at_most("error of dX, relative", whole.hidden_gradient_error or forward.hidden_gradient_error, GRADIENT)
    if shape.memory is not None:
        yield at_most("workspace / plain torch's", ratio(whole.workspace_mib, plain.workspace_mib), shape.memory)
    for name, (package, total, alone) in PEERS.items():
        if (peer := of.get(name)) is None:
            yield f"{name} ({package})", "–", "–" if total is None else f"≥ {total}", "absent"
            continue
        yield at_least(f"{name} / ours, forward + backward", ratio(peer.total_seconds, whole.total_seconds), total)
        if peer.forward_seconds is not None:
            yield at_least(f"{name} / ours, forward only", ratio(peer.forward_seconds, forward.forward_seconds), alone)
    yield "Liger's tensor-parallel head, QuACK", "–", "≥ 1.2", "absent"


def best(figures: list[Figure], path: str) -> Figure | None:
    """Returns the fastest of our implementations of one path."""
    ours = [figure for figure in figures if figure.way.startswith("ours") and figure.way.endswith(path)]
    return min(ours, key=lambda figure: figure.total_seconds, default=None)


def ratio(over: float | None, under: float | None) -> float | None:
    """Returns the quotient; None where a figure is missing or nothing was measurable."""
    return over / under if over is not None and under else None


def at_most(what: str, value: float | None, bound: float) -> Row:
    """Returns the row of a target that is met from below."""
    return what, number(value, ".3g"), f"≤ {bound:g}", verdict(value is not None and value <= bound, value)


def at_least(what: str, value: float | None, bound: float | None) -> Row:
    """Returns the row of a target that is met from above; without a bound it has no verdict."""
    if bound is None:
        return what, number(value, ".3g"), "–", "–"
    return what, number(value, ".3g"), f"≥ {bound:g}", verdict(value is not None and value >= bound, value)


def verdict(met: bool, value: float | None) -> str:
    """Returns the last cell of a target."""
    return "not measured" if value is None else "met" if met else "missed"


def epilogues(findings: Findings, device: torch.device) -> None:
    """Adds the passes over one tile of logits, in bytes per second beside a copy."""
    rows, columns = (1024, 152064) if device.type == "cuda" else (32, 2048)
    figures = bench_epilogues.measure(bench_epilogues.Tile(rows, columns, device), 10 if device.type == "cuda" else 1)
    copy = figures["copy"]["gigabytes_per_second"]
    cells = [
        [
            name,
            f"{f['ns_per_logit']:.4f}",
            f"{f['gigabytes_per_second']:.0f}",
            f"{f['gigabytes_per_second'] / copy:.2f}",
        ]
        for name, f in figures.items()
    ]
    findings.add(Table(f"Epilogues, a tile of {rows} x {columns}", ("pass", "ns per logit", "GB/s", "of copy"), cells))
    findings.figures("epilogues", figures)


if __name__ == "__main__":
    sys.exit(run_part(work, __doc__.splitlines()[0]))
