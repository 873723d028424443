"""Runs one case in this process, which must be nothing else: it stays a rank of a world that does not exist."""

from __future__ import annotations

import importlib
import resource
import time
import traceback
import warnings

from megatron_lwz.config import Config, validate
from megatron_lwz.distributed import launch
from megatron_lwz.rehearsal import corrections, cuda, engine, launches, world
from megatron_lwz.rehearsal.case import Case, Report, TransferRow, WaitRow
from megatron_lwz.rehearsal.contracts import CONTRACTS
from megatron_lwz.rehearsal.device import FakeDevice
from megatron_lwz.rehearsal.ledger import Ledger
from megatron_lwz.rehearsal.stages import Rehearsed, run_stage
from megatron_lwz.rehearsal.steps import for_stage

_TOLD = {"loss": 1.0, "tokens": 1.0}
"""What the last pipeline stage would report of the loss."""


def rehearse_here(case: Case) -> Report:
    """Returns what was counted. An error of the case is in the report, not raised."""
    started, before, ledger = time.process_time(), _most_memory(), Ledger()
    cuda.count_into(ledger)
    engine.count_into(ledger)
    error, detail, found = None, "", Rehearsed(0)
    try:
        found = _run(case, FakeDevice(ledger))
    except Exception as caught:
        error = f"{type(caught).__name__}: {' '.join(str(caught).split())[:500]}"
        detail = traceback.format_exc()
    waits = (WaitRow(w.phase, w.what, w.place, w.line, count) for w, count in ledger.waits.items())
    return Report(
        name=case.name,
        error=error,
        detail=detail,
        parameters=found.parameters,
        peak=ledger.peak,
        host_peak=ledger.host_peak,
        grown=_most_memory() - before,
        state=found.state,
        peaks=ledger.peaks,
        transfers=tuple(TransferRow(*key, count, ledger.transferred[key]) for key, count in ledger.transfers.items()),
        launches=dict(ledger.launches),
        waits=tuple(sorted(waits, key=lambda row: (row.phase, row.place, row.line))),
        micro_batches=found.micro_batches,
        notes=found.notes or {},
        seconds=time.process_time() - started,
    )


def _run(case: Case, device: FakeDevice) -> Rehearsed:
    config = _config(case)
    config.check_layout(case.world)
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # asked for its alignment
    launches.install(device, CONTRACTS)
    corrections.install(device)
    world.join(case.rank, case.world, told=_TOLD)
    with device:
        launch.initialize(config)
        if case.fault is not None:
            module, _, function = case.fault.partition(":")
            getattr(importlib.import_module(module), function)(device)
        return run_stage(case, config, device)


def _most_memory() -> int:
    """Returns the most memory in bytes that this process has held; after a fork, that of the moment of the fork."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _config(case: Case) -> Config:
    config = validate(dict(case.config))
    alone = config.parallel.model_copy(update={"stall_minutes": 0.0})  # the other ranks do not exist: no heartbeats
    config = config.model_copy(update={"parallel": alone})
    return for_stage(config, case.stage)
