"""Limits the number of concurrent rollouts of an engine by the use of its key-value cache: no clock, no HTTP."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from megatron_lwz.config.pool import PoolSection

SHRINK = 0.75
STEPS = 16
"""Number of steps from 0 to the highest limit."""

_GAUGES = {
    "vllm:kv_cache_usage_perc": "kv_use",
    "vllm:gpu_cache_usage_perc": "kv_use",  # its name before vLLM 0.10
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:num_preemptions": "preemptions",
}

_MOST = 2**53
"""Largest count that is believed. The sum of two finite numbers may be infinite."""


@dataclass(frozen=True)
class EngineLoad:
    """The load that an engine reports. `kv_use` is a fraction; `preemptions` counts from the engine's start."""

    kv_use: float
    running: int = 0
    waiting: int = 0
    preemptions: int = 0


def read_load(text: str) -> EngineLoad | None:
    """Parses the load from /metrics (Prometheus text, vLLM's names). None if it does not report the cache's use.

    With several ranks, the numbers of requests are summed, and the fullest cache counts.
    """
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        name = line.split("{", 1)[0].split(" ", 1)[0]
        if name not in _GAUGES:
            continue
        try:  # NAME{LABELS} VALUE [TIMESTAMP]
            value = float(line.rpartition("}")[2].split()[0] if "{" in line else line.split()[1])
        except (ValueError, IndexError):
            continue
        if math.isfinite(value) and value >= 0:
            found.setdefault(_GAUGES[name], []).append(value)
    if "kv_use" not in found:
        return None
    counts = {name: int(min(sum(values), _MOST)) for name, values in found.items() if name != "kv_use"}
    return EngineLoad(min(1.0, max(found["kv_use"])), **counts)


def write_load(load: EngineLoad, *, model: str) -> str:
    """Returns Prometheus text that `read_load` parses."""
    values = {
        ("vllm:kv_cache_usage_perc", "gauge"): load.kv_use,
        ("vllm:num_requests_running", "gauge"): load.running,
        ("vllm:num_requests_waiting", "gauge"): load.waiting,
        ("vllm:num_preemptions_total", "counter"): load.preemptions,
    }
    label = json.dumps(model, ensure_ascii=False)  # escapes the characters that Prometheus requires to be escaped
    return "".join(
        f'# TYPE {name} {kind}\n{name}{{engine="0",model_name={label}}} {value}\n'
        for (name, kind), value in values.items()
    )


class ConcurrencyLimit:
    """A limit by additive increase and multiplicative decrease, between `pool.least_concurrency` and `most`.

    A cache fills long after its rollouts began, because texts grow for minutes. So the limit starts at `most` and falls
    at once to what the cache has proved to hold. It grows by one step per round. A round ends when as many rollouts
    have ended as the limit allows; the limit grows only if the cache was never full in the round.
    """

    def __init__(self, most: int, section: PoolSection) -> None:
        self.value = most
        self._most = most
        self._section = section
        self._least = min(most, section.least_concurrency)
        self._last: EngineLoad | None = None
        self._ended = 0
        self._peak = 0.0

    def ended(self) -> None:
        """Records that a rollout ended or left the engine."""
        self._ended += 1

    def observe(self, load: EngineLoad, in_use: int) -> None:
        """Updates the limit from a probe's load. `in_use`: the number of our rollouts on the engine."""
        if not self._section.adaptive:
            return
        last, self._last = self._last, load
        self._peak = max(self._peak, load.kv_use)
        preempted = last is not None and load.preemptions > last.preemptions
        queued = last is not None and load.waiting > 0 and last.waiting > 0  # one probe may see a batch that just came
        if preempted or queued or load.kv_use >= self._section.kv_high:
            if in_use <= self.value:  # else the surplus rollouts must end first
                self.value = max(self._least, int(SHRINK * in_use))
            self._ended, self._peak = 0, 0.0
        elif self._ended >= self.value:
            if self._peak < self._section.kv_low and in_use >= self.value:
                self.value = min(self._most, self.value + max(1, self._most // STEPS))
            self._ended, self._peak = 0, 0.0
