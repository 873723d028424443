"""Adam under Megatron-Core: data-parallel wrapping, distributed optimizer, schedule, and the state that it holds.

Parameters are fp32 or bf16. Gradients are reduced in fp32, and bf16 parameters have fp32 masters. Weight decay is
decoupled and, as in Megatron-LM, does not apply to biases and norm weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

from megatron_lwz.config import Config
from megatron_lwz.distributed import groups
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.training import adam, multi_tensor
from megatron_lwz.training.embedding_gradient import add_embedding_gradients_by_row
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
    add_embedding_gradients_by_row(policies)
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
    with adam.eager():
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
    return optimizer


def apply_gradients(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clips the gradients, which `prepare_grads` has prepared, by their known norm, and updates the weights.

    It does what the rest of Megatron's `step` does. That would compute the norm once more, and leave no moment between
    the norm and the update to refuse one.
    """
    for part in parts(optimizer):
        parameters = part.get_parameters()
        if parameters and part.config.clip_grad > 0.0:
            clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=grad_norm)
    optimizer.step_with_ready_grads()


def parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """Returns the single Megatron optimizers inside a chained one."""
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in chained if part.optimizer is not None]


def prime(optimizer: MegatronOptimizer) -> None:
    """Creates Adam's state, filled with zeros, as its first step would.

    Without it an optimizer that never stepped has nothing to save, and nothing to load into. torch's Adam counts its
    steps per parameter, the fused ones (Transformer Engine, Apex) per group.
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


@dataclass(frozen=True)
class Held:
    """What this rank's optimizer holds of one parameter: a range of its elements, as flat views."""

    parameter: torch.nn.Parameter
    begin: int
    """The first element of the range; the range of an optimizer that is not distributed is the whole parameter."""
    tensors: dict[str, torch.Tensor]
    """`exp_avg`, `exp_avg_sq` and the weights in fp32, if it keeps them: each [elements].

    Megatron's names, as in all checkpoints: the weights are `param` of the distributed optimizer, `fp32_param` of others.
    """


def held(part: MegatronOptimizer) -> Iterator[Held]:
    """Yields what one Megatron optimizer holds, once it is primed."""
    if isinstance(part, DistributedOptimizer):
        buckets = (bucket for maps in part.gbuf_ranges for found in maps.values() for bucket in found)
        for parameter, ranges in (item for bucket in buckets for item in bucket["param_map"].items()):
            tensors = part._get_main_param_and_optimizer_states(parameter)
            yield Held(parameter, ranges["param"].start, _flat(tensors))
        return
    groups = (zip(*pair, strict=True) for pair in _masters(part))
    models = {id(master): model for group in groups for model, master in group}
    for parameter in (parameter for group in part.optimizer.param_groups for parameter in group["params"]):
        tensors = dict(part.optimizer.state[parameter])
        if id(parameter) in models:
            tensors["fp32_param"] = parameter
        yield Held(models.get(id(parameter), parameter), 0, _flat(tensors))


def _masters(part: MegatronOptimizer) -> Iterator[tuple[list[torch.nn.Parameter], list[torch.Tensor]]]:
    """Yields, per group, the 16-bit parameters and their fp32 masters, of an optimizer that is not distributed."""
    if isinstance(part, Float16OptimizerWithFloat16Params):
        yield from zip(part.float16_groups, part.fp32_from_float16_groups, strict=True)


def _flat(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().view(-1) for name, tensor in tensors.items() if name != "step"}


def adam_step(optimizer: MegatronOptimizer) -> int:
    """Returns how many updates Adam has made. torch's keeps it per parameter, a fused one per group."""
    counts = {0}
    for part in parts(optimizer):
        counts |= {int(entry["step"]) for entry in part.optimizer.state.values() if "step" in entry}
        counts |= {int(group["step"]) for group in part.optimizer.param_groups if "step" in group}
    assert len(counts - {0}) <= 1, counts
    return max(counts)


def set_adam_step(optimizer: MegatronOptimizer, step: int) -> None:
    """Sets how many updates Adam has made."""
    for part in parts(optimizer):
        if isinstance(part.optimizer, torch.optim.AdamW):
            for entry in part.optimizer.state.values():
                entry["step"] = torch.tensor(float(step))  # one per parameter: Adam advances it in place
        else:
            for group in part.optimizer.param_groups:
                group["step"] = step
