"""Adds weight gradients to the fp32 buffers inside the matrix product that computes them.

Otherwise a bf16 layer's gradient of every micro-batch is a tensor of its own, rounded to bf16 before it is summed.
Transformer Engine's layers have such a product; Megatron's own need the extension `fused_weight_gradient_mlp_cuda`,
which Apex builds. Neither needs the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from megatron_lwz.distributed import optional

APEX = "fused_weight_gradient_mlp_cuda"


def fuse_gradient_accumulation(policies: Iterable[GPTModel]) -> list[str]:
    """Switches it on in every layer that can do it here; returns by whom, for the log.

    To be called when the weights have their gradient buffer (`main_grad`, made by Megatron's data-parallel wrapper). A
    model without that wrapper keeps autograd's gradients, because these products have nowhere else to write. The output
    layer is left out: kernels/linear_logprob adds its gradient.
    """
    apex, used = optional.unusable(APEX) is None, set()
    for policy in policies:
        for module in policy.decoder.modules():
            if hasattr(module, "fuse_wgrad_accumulation"):  # a layer of Transformer Engine
                module.fuse_wgrad_accumulation = True
                used.add("Transformer Engine")
            elif apex and isinstance(module, ColumnParallelLinear | RowParallelLinear):
                module.gradient_accumulation_fusion = True
                used.add("Apex")
    return sorted(used)
