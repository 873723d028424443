"""Worker side of test_heartbeat: two ranks, of which one keeps the other waiting."""

from __future__ import annotations

import datetime
import logging
import os
import signal
import subprocess
import time
from typing import Any

import torch
import torch.distributed as dist

from megatron_lwz.config import Config
from megatron_lwz.distributed import exchange, heartbeat, launch

STALL_SECONDS = 1.0


def hangs(config: dict[str, Any]) -> dict[str, Any]:
    """What this rank logs while rank 1 is late, waits for rollouts, is stopped, and does not come at all."""
    launch.initialize(Config.model_validate(config))
    found = {
        "late": _logged(lambda: _late(3.0)),
        "waiting": _logged(_waits_for_rollouts),
        "behind": _logged(_late_for_a_reason),
        "stopped": _logged(_stopped),
        "moving": _logged(_moving),
    }
    try:
        _absent()
    except RuntimeError as error:
        heartbeat.stop()  # as the end of a run does before its error is reported
        found["lost"] = heartbeat.lost_peer(error)
    found["other"] = heartbeat.lost_peer(RuntimeError("no such batch"))
    return found


def _late(seconds: float) -> None:
    if dist.get_rank() == 1:
        time.sleep(seconds)
    exchange.largest(0.0)


def _waits_for_rollouts() -> None:
    """Rank 0 waits for rank 1, as ranks wait for rollouts: for any time."""
    if dist.get_rank() == 1:
        with heartbeat.waiting("its rollouts"):
            time.sleep(3 * STALL_SECONDS)
        exchange.post("rollouts of a test")
    exchange.wait_until_posted("rollouts of a test", 60.0)


def _late_for_a_reason() -> None:
    """Rank 0 comes to a collective while rank 1 waits for its engines."""
    if dist.get_rank() == 1:
        with heartbeat.waiting("its engines"):
            time.sleep(3 * STALL_SECONDS)
    exchange.largest(0.0)


def _stopped() -> None:
    """Rank 1 is stopped by a signal, and goes on later."""
    if dist.get_rank() == 1:
        subprocess.Popen(["sh", "-c", f"sleep 5; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    exchange.largest(0.0)


def _moving() -> None:
    """The main thread is seen at one line for long, but counts its progress."""
    end = time.monotonic() + 3 * STALL_SECONDS
    while time.monotonic() < end:
        heartbeat.moved()
        time.sleep(0.05)
    exchange.largest(0.0)


def _absent() -> None:
    """Rank 0 alone comes to a collective whose time runs out."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=1))
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1), group=group)


def _logged(work: Any) -> list[str]:
    """The warnings of the heartbeat while `work` runs; the ranks begin it together."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger(heartbeat.__name__)
    dist.barrier()
    log.addHandler(handler)
    try:
        work()
    finally:
        log.removeHandler(handler)
    return said
