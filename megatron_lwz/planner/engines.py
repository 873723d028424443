"""The engines of a plan: GPUs, weights, keys and values, and how long they write. Formulas; nothing is rehearsed."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_lwz.config import Architecture, Config
from megatron_lwz.planner.assumptions import ASSUMED
from megatron_lwz.planner.hardware import Gpu

_POINTS = 128
"""Points at which the length of a decode step is computed."""
_GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, without their whole parts, are spread evenly, and so is every stretch of them."""


def parameters(arch: Architecture) -> int:
    """Returns the number of parameters of the whole model, without padding."""
    head = arch.head_size
    query, key_value = arch.num_attention_heads * head, arch.num_key_value_heads * head
    attention = arch.hidden_size * (2 * query + 2 * key_value)
    attention += (query + 2 * key_value if arch.family.qkv_bias else 0) + (2 * head if arch.family.qk_norm else 0)
    layer = attention + 3 * arch.hidden_size * arch.intermediate_size + 2 * arch.hidden_size
    tables = arch.vocab_size * arch.hidden_size * (1 if arch.tie_word_embeddings else 2)
    return arch.num_hidden_layers * layer + tables + arch.hidden_size


def cache_bytes_per_token(arch: Architecture, width: int = 2) -> int:
    """Returns bytes of keys and values of one token, in numbers of `width` bytes."""
    return 2 * width * arch.num_hidden_layers * arch.num_key_value_heads * arch.head_size


@dataclass(frozen=True)
class Engines:
    """How many engines of how many GPUs each."""

    arch: Architecture
    count: int
    tensor: int
    card: Gpu
    longest: int
    """Tokens of prompt and response."""
    concurrency: int
    """`rollout.concurrency`."""
    colocated: bool = False
    width: int = 2
    """Bytes of a number: vLLM is started with bf16, the embedded engine has the trainer's precision."""

    @property
    def weights(self) -> int:
        """Bytes of weights per GPU."""
        return self.width * parameters(self.arch) // self.tensor

    @property
    def cache(self) -> int:
        """Bytes per GPU that are left for keys and values; negative: the weights alone do not fit."""
        room = int(self.card.memory * ASSUMED.engine_memory_share.value) - int(ASSUMED.engine_workspace_bytes.value)
        return room - self.weights

    @property
    def cache_per_token(self) -> int:
        """Bytes of keys and values of one token, on all GPUs of an engine."""
        return cache_bytes_per_token(self.arch, self.width)

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values an engine holds at once."""
        return max(0, self.cache) * self.tensor // self.cache_per_token

    def at_once(self, context: float) -> int:
        """Returns the sequences that an engine writes at once, at most `rollout.concurrency`.

        `context`: mean tokens of a sequence while it is written, prompt included. vLLM gives a sequence blocks as it
        grows, so what it will once be long does not count.
        """
        return min(self.concurrency, int(self.cached_tokens / context))

    def slots(self, mean: float, prompt: float) -> int:
        """Returns the responses that an engine writes at once; their lengths are spread evenly up to twice the mean."""
        return self.at_once(prompt + 2.0 * mean / 3.0)

    def step_seconds(self, rows: float, context: float) -> float:
        """Returns the time of one decode step with `rows` sequences of `context` tokens on one engine."""
        moved = self.weights + rows * context * self.cache_per_token / self.tensor
        memory = moved / (self.card.memory_gb_per_s * 1e9 * ASSUMED.memory_share.value)
        flops = 2.0 * parameters(self.arch) * rows / self.tensor
        compute = flops / (self.card.bf16_tflops * 1e12 * ASSUMED.matrix_share.value)
        return max(memory, compute) + self.arch.num_hidden_layers * ASSUMED.decode_launch_seconds.value

    def seconds(self, sequences: int, mean: float, most: int, prompt: float) -> float:
        """Returns the time to write `sequences` responses, of which the longest has `most` tokens.

        Lengths are spread evenly from 0 to twice the mean, cut at `most`. A sequence for which there is no slot takes
        the first one that becomes free, as in the simulation of a run (`planner/simulation`).
        """
        each = math.ceil(sequences / self.count)
        lengths = np.clip(2.0 * mean * (np.arange(1, each + 1) * _GOLDEN % 1.0), 1.0, most)
        slots = self.slots(mean, prompt)
        if slots < 1 or self.cached_tokens < self.longest:
            return math.inf
        begins = _begins(lengths, slots)
        ends = begins + lengths
        step, total = ends.max() / _POINTS, 0.0
        for position in (np.arange(_POINTS) + 0.5) * step:
            alive = (begins <= position) & (position < ends)
            context = prompt + float((position - begins[alive]).mean()) if alive.any() else prompt
            total += step * self.step_seconds(max(1.0, float(alive.sum())), context)
        return float(total)


def mean_context(lengths: npt.NDArray[np.float64]) -> float:
    """Returns the mean tokens of a response before the one that is being written."""
    return float((lengths**2).sum() / lengths.sum() / 2)


def _begins(lengths: npt.NDArray[np.float64], slots: int) -> npt.NDArray[np.float64]:
    """Returns the decode step at which each sequence gets one of the slots, in order."""
    free, found = [0.0] * slots, np.zeros(len(lengths))
    for index, length in enumerate(lengths.tolist()):
        found[index] = free[0]
        heapq.heapreplace(free, free[0] + length)
    return found


def engines_of(config: Config, card: Gpu, gpus: int, tensor: int | None, mean: float) -> Engines:
    """Returns the engines that `gpus` GPUs hold: of `tensor` GPUs each, or of as many as write responses of `mean` fastest."""
    arch = config.architecture()
    longest, most = config.data.max_prompt_tokens + config.rollout.max_new_tokens, config.rollout.max_new_tokens
    allowed = [size for size in (1, 2, 4, 8) if not arch.num_key_value_heads % size and size <= gpus]
    sequences, prompt = config.training.prompts_per_step * config.grpo.group_size, ASSUMED.prompt_tokens.value
    r, width = config.rollout, 4 if config.rollout.engine == "embedded" and config.training.precision == "fp32" else 2
    found = [
        Engines(arch, max(1, gpus // size), size, card, longest, r.concurrency, r.colocated, width)
        for size in ([tensor] if tensor else allowed)
    ]
    return min(found, key=lambda engines: (engines.seconds(sequences, mean, most, prompt), -engines.tensor))
