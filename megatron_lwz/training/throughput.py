"""How fast the trainer computes: tokens and FLOPs per second and GPU, and MFU where a GPU's peak is known.

A rank has one GPU; on a CPU the figures are those of a rank. The FLOPs are the model's own (config/flops.py): what
activation recomputation adds does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch.distributed as dist

from megatron_lwz.config import Architecture, Config
from megatron_lwz.config.flops import sequence_flops, training_passes
from megatron_lwz.metrics import Row
from megatron_lwz.orchestrator.experience import Experience


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
        self._config = config
        self._passes = {
            "logprobs": (1.0, config.log_prob_passes()),
            "update": (training_passes(config), [config.architecture()]),
        }
        """Phase → FLOPs of it in forward passes over the batch, by these models."""
        self._lengths: list[int] = []

    def count(self, parts: Iterable[Experience]) -> Iterator[Experience]:
        """Yields the parts of the step's batch, and counts them. Sequences of weight 0 are not computed."""
        for part in parts:
            weights = part.batch.weights.tolist()
            self._lengths += [
                length for length, weight in zip(part.batch.lengths(), weights, strict=True) if weight > 0
            ]
            yield part

    def take(self, seconds: Mapping[str, float]) -> Row:
        """Returns the step's metrics, with its `seconds`: by `seconds/<phase>`. The next step begins."""
        found = dict(seconds)
        tokens = sum(length - 1 for length in self._lengths)
        for phase, (passes, models) in self._passes.items():
            if models and tokens:
                flops = passes * sum(forward_flops(model, self._lengths) for model in models)
                rates = per_gpu(self._config, tokens, flops, seconds[f"seconds/{phase}"])
                found |= {f"{name}/{phase}": value for name, value in rates.items()}
        self._lengths = []
        return found
