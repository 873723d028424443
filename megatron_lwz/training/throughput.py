"""How fast the trainer computes: tokens and FLOPs per second and GPU, and MFU where a GPU's peak is known.

A rank has one GPU; on a CPU the figures are those of a rank. The FLOPs are the model's own (config/flops.py): what
activation recomputation adds does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch.distributed as dist

from megatron_lwz.config import Architecture, Config
from megatron_lwz.config.flops import sequence_flops
from megatron_lwz.metrics import Row
from megatron_lwz.orchestrator.experience import Experience

FORWARD_BACKWARD = 3.0
"""FLOPs of a training step, in forward passes."""


def forward_flops(arch: Architecture, lengths: Iterable[int]) -> float:
    """Returns the FLOPs of a forward pass over sequences of so many tokens, the last of which is a label only."""
    return sum(sequence_flops(arch, length - 1) for length in lengths)


def per_gpu(config: Config, tokens: float, flops: float, seconds: float) -> Row:
    """Returns the metrics of a time in which all ranks together computed so much. `mfu` only with a known peak."""
    if seconds <= 0:
        return {}
    gpu_seconds = seconds * dist.get_world_size()
    found = {"tokens_per_second_per_gpu": tokens / gpu_seconds, "flops_per_second_per_gpu": flops / gpu_seconds}
    if config.training.peak_flops is not None:
        found["mfu"] = found["flops_per_second_per_gpu"] / config.training.peak_flops
    return found


class Throughput:
    """Counts what the phases of a GRPO step compute, and returns metrics `…/<phase>`."""

    def __init__(self, config: Config) -> None:
        self._config, self._arch = config, config.architecture()
        passes = (config.training.updates_per_batch > 1) + (config.grpo.kl_coefficient > 0)
        self._passes = {"logprobs": float(passes), "update": FORWARD_BACKWARD}
        """Phase → forward passes over the batch."""
        self._tokens, self._flops = 0, 0.0

    def count(self, parts: Iterable[Experience]) -> Iterator[Experience]:
        """Yields the parts of the step's batch, and counts them. Sequences of weight 0 are not computed."""
        for part in parts:
            weights = part.batch.weights.tolist()
            kept = [length for length, weight in zip(part.batch.lengths(), weights, strict=True) if weight > 0]
            self._tokens += sum(length - 1 for length in kept)
            self._flops += forward_flops(self._arch, kept)
            yield part

    def take(self, seconds: Mapping[str, float]) -> Row:
        """Returns the step's metrics, with its `seconds`: by `seconds/<phase>`. The next step begins."""
        found = dict(seconds)
        for phase, passes in self._passes.items():
            if passes and self._tokens:
                flops, time = passes * self._flops, seconds[f"seconds/{phase}"]
                found |= {
                    f"{name}/{phase}": value for name, value in per_gpu(self._config, self._tokens, flops, time).items()
                }
        self._tokens, self._flops = 0, 0.0
        return found
