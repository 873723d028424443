"""Adam under Megatron-Core: data-parallel wrapping, distributed optimizer, schedule, repairs of the optimizer's state.

Parameters are fp32 or bf16. Gradients are reduced in fp32, and bf16 parameters have fp32 masters. Weight decay is
decoupled and, as in Megatron-LM, does not apply to biases and norm weights.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer

from megatron_lwz.config import Config
from megatron_lwz.distributed import groups
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.training import multi_tensor
from megatron_lwz.training.gradient_fusion import fuse_gradient_accumulation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a pure function of the step: nothing to save, exact on resume.

    Linear warm-up, then constant, or cosine / linear decay to `min_lr` at `training.steps`, or (wsd) constant with a
    linear decay over the last `decay_steps`.
    """

    config: Config

    def lr(self, step: int) -> float:
        """Returns the learning rate of step `step`, counted from 0."""
        section, steps = self.config.optimizer, self.config.training.steps
        warmup = section.warmup_steps or math.ceil(round(section.warmup_fraction * steps, 6))
        if step < warmup:
            return section.lr * (step + 1) / warmup
        decay = {"constant": 0, "wsd": section.decay_steps}.get(section.schedule, steps)
        if decay == 0:
            return section.lr
        begin = max(warmup, steps - decay)
        progress = min(1.0, max(0, step - begin) / max(1, steps - begin))
        decayed = 0.5 * (1.0 + math.cos(math.pi * progress)) if section.schedule == "cosine" else 1.0 - progress
        return section.min_lr + (section.lr - section.min_lr) * decayed

    def apply(self, optimizer: MegatronOptimizer, step: int) -> float:
        """Writes the config's settings for `step` into every parameter group; returns the learning rate.

        All settings are written, not only the rate, so that the config wins over the groups of a checkpoint.
        """
        section, lr = self.config.optimizer, self.lr(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = section.weight_decay * group.get("wd_mult", 1.0)
            group["betas"] = (section.beta1, section.beta2)
            group["eps"] = section.eps
        return lr


def wrap_data_parallel(policies: list[PolicyModel], config: Config) -> list[DistributedDataParallel]:
    """Wraps this rank's model chunks for data parallelism. Gradients are summed, not averaged, over DP × CP.

    Megatron's schedules get no `finalize_model_grads_func`: gradients are finalised at the end of the step (`step.py`).
    From here on the weights have fp32 gradient buffers, and layers that can add to them directly do so.
    """
    overlap = config.parallel.overlap
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=config.parallel.distributed_optimizer,
        overlap_grad_reduce=overlap,
    )
    chunks = [
        DistributedDataParallel(policy.config, settings, policy, disable_bucketing=index > 0)
        for index, policy in enumerate(policies)
    ]
    fused = fuse_gradient_accumulation(policies)
    if groups.is_rank_zero():
        _log.info("matrix products that add to the fp32 weight gradients: %s", ", ".join(fused) or "none")
    if overlap:
        contexts = [chunk.no_sync for chunk in chunks]
        for policy in policies:
            policy.config.no_sync_func = contexts if len(contexts) > 1 else contexts[0]
    return chunks


def build_optimizer(chunks: list[DistributedDataParallel], config: Config) -> MegatronOptimizer:
    """Builds Adam over the chunks' current weights. Load weights first: bf16 masters are copied from them."""
    section = config.optimizer
    multi_tensor.install()
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=section.lr,
            min_lr=section.min_lr,
            weight_decay=section.weight_decay,
            adam_beta1=section.beta1,
            adam_beta2=section.beta2,
            adam_eps=section.eps,
            clip_grad=section.clip_grad,
            bf16=config.training.precision == "bf16",
            params_dtype=torch.bfloat16 if config.training.precision == "bf16" else torch.float32,
            use_distributed_optimizer=config.parallel.distributed_optimizer,
        ),
        chunks,
        use_gloo_process_groups=False,
    )
    prime(optimizer)
    for part in parts(optimizer):
        _keep_bucket_padding(part)
    return optimizer


def parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """Returns the single Megatron optimizers inside a chained one."""
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in chained if part.optimizer is not None]


def prime(optimizer: MegatronOptimizer) -> None:
    """Creates Adam's state, filled with zeros, as its first step would.

    Without it Megatron cannot save an optimizer that never stepped, and a run that ends before its first applied step
    would lose its checkpoint. torch's Adam counts its steps per parameter, the fused ones (Transformer Engine, Apex) per
    group.
    """
    for part in parts(optimizer):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                state = part.optimizer.state[parameter]
                if not state:
                    if isinstance(part.optimizer, torch.optim.AdamW):
                        state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)


def _keep_bucket_padding(part: MegatronOptimizer) -> None:
    """Repairs what a distributed optimizer of megatron-core 0.16 saves when its buffer has more than one bucket.

    It gathers the buckets without the padding between them, but cuts parameters out at their padded offsets. So every
    bucket after the first (a tied embedding under pipeline parallelism, or any with overlap) is saved shifted
    (Megatron-LM pull request 5077). Putting the padding back makes both sides agree.
    """
    gather = getattr(part, "get_parameter_state_dp_zero", None)
    if gather is None:
        return

    def gather_padded(**options: Any) -> dict[Any, Any] | None:
        state = gather(**options)
        for index, buffer in enumerate(part.buffers if state is not None else ()):
            for tensors in state[index].values():
                for name in ("param", "exp_avg", "exp_avg_sq"):
                    tensors[name] = _spread(tensors[name], buffer)
        return state

    part.get_parameter_state_dp_zero = gather_padded


def _spread(packed: torch.Tensor, buffer: Any) -> torch.Tensor:
    """Copies [unpadded elements] to [elements of the buffer]: every bucket back at its own offset."""
    spread, start = packed.new_zeros(buffer.numel), 0
    for bucket in buffer.buckets:
        spread[bucket.offset :][: bucket.numel_unpadded] = packed[start : start + bucket.numel_unpadded]
        start += bucket.numel_unpadded
    return spread


@torch.no_grad()
def load_optimizer_state(optimizer: MegatronOptimizer, state: dict[Any, Any]) -> None:
    """Loads a state that `sharded_state_dict` saved.

    Works around two faults of megatron-core 0.16 without a fused Adam. Its `fully_reshardable` loader looks for a
    `step` tensor that is not saved per parameter (KeyError). Its `load_state_dict` gives all parameters one shared
    `step` tensor, which Adam then advances once per parameter.
    """
    whole = getattr(optimizer, "chained_optimizers", [optimizer])
    states = [state] if len(whole) == 1 else [state[index] for index in range(len(whole))]
    for part, part_state in zip(whole, states, strict=True):
        if part.optimizer is None:
            continue
        tensors = part_state.pop("param_state", None)
        part.load_state_dict(part_state)
        own = part.optimizer.state.values()
        steps = [entry.pop("step", None) for entry in own]
        if tensors is not None:
            part.load_parameter_state_from_fully_reshardable(tensors)
        for entry, step in zip(own, steps, strict=True):
            if step is not None:
                entry["step"] = step.clone()
