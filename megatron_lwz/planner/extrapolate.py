"""A rank with many layers from rehearsals with one and with two: all layers are the same.

Bytes, transfers and launches grow by the same amount with every layer. A test compares the result with rehearsals of
all layers. Two things are not on a straight line, and small: the padding of the distributed optimizer's buffers, and the
allocator's blocks at the ends of its shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_lwz.rehearsal.case import Case, Report, TransferRow

FEWER = (1, 2)
"""Layers per chunk of a stage that are rehearsed."""


def chunks(case: Case) -> int:
    """Returns the number of equal parts that the model's layers are split into."""
    parallel = case.config["parallel"]
    return int(parallel["pipeline"] * (parallel["virtual_pipeline"] or 1))


def shortened(case: Case, layers: int) -> Case:
    """Returns the case with `layers` layers per chunk."""
    model: Mapping[str, Any] = case.config["model"]
    architecture = {**model["architecture"], "num_hidden_layers": layers * chunks(case)}
    config = {**case.config, "model": {**model, "architecture": architecture}}
    return replace(case, config=config, name=f"{case.name}, {layers} layers per chunk")


def fewer(case: Case) -> list[Case]:
    """Returns the cases to rehearse in place of `case`; itself if it has no more layers."""
    if layers_per_chunk(case) <= FEWER[-1]:
        return [case]
    return [shortened(case, layers) for layers in FEWER]


def layers_per_chunk(case: Case) -> int:
    """Returns the number of layers in each chunk."""
    return int(case.config["model"]["architecture"]["num_hidden_layers"]) // chunks(case)


def extended(case: Case, reports: list[Report]) -> Report:
    """Returns the report of `case` from those of `fewer(case)`. An error of one of them is its error."""
    failed = next((report for report in reports if report.error is not None), None)
    if failed is not None or len(reports) == 1:
        return failed or reports[0]
    small, large = reports
    steps = layers_per_chunk(case) - FEWER[0]

    def at(a: int, b: int) -> int:
        return a + (b - a) * steps

    rows = {(row.phase, row.operation, row.group, row.ranks): row for row in large.transfers}
    pairs = [(row, rows[row.phase, row.operation, row.group, row.ranks]) for row in small.transfers]
    return replace(
        large,
        name=case.name,
        parameters=at(small.parameters, large.parameters),
        peak=at(small.peak, large.peak),
        state={name: at(size, large.state[name]) for name, size in small.state.items()},
        peaks={name: at(size, large.peaks[name]) for name, size in small.peaks.items()},
        transfers=tuple(
            TransferRow(a.phase, a.operation, a.group, a.ranks, at(a.count, b.count), at(a.bytes, b.bytes))
            for a, b in pairs
        ),
        launches={name: at(count, large.launches[name]) for name, count in small.launches.items()},
        waits=(),
        seconds=small.seconds + large.seconds,
    )
