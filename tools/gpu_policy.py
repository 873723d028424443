"""Log-probs and gradients of a policy of two layers with random weights, on this process's device, to a file.

python tools/gpu_policy.py numbers.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_lwz.config import validate
from megatron_lwz.distributed import launch, platform
from megatron_lwz.models.hf.load import RandomInit, load_policy
from megatron_lwz.models.qwen import build_policy

ARCHITECTURE = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1003,
    "initializer_range": 0.05,
}
STARTS = (0, 50, 61, 128)
"""Of the packed texts; the last number is the length of the pack."""
TINY = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 61, "initializer_range": 0.3}
TINY_STARTS = (0, 5, 11)


def main() -> None:
    """Writes the numbers in fp32, by plain torch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    torch.save(numbers("fp32", layers="torch"), parser.parse_args().out)


def numbers(precision: str, *, layers: str, tiny: bool = False) -> dict[str, Tensor]:
    """Returns "logprob" of a packed micro-batch, and the gradient of their sum in every weight, in fp32 on the CPU.

    `layers` is `kernels.layers`; `tiny` is a size for Triton's interpreter.
    """
    architecture, begins = (ARCHITECTURE | TINY, TINY_STARTS) if tiny else (ARCHITECTURE, STARTS)
    # Transformer Engine would fuse other weights than the CPU has.
    model = {"architecture": architecture, "attention": "torch"}
    sections = {"training": {"precision": precision}, "kernels": {"layers": layers}}
    config = validate({"model": model, **sections})
    launch.initialize(config)
    try:
        (policy,) = build_policy(config)
        load_policy([policy], RandomInit(config.architecture(), seed=3))
        device = platform.device()
        starts = torch.tensor(begins, dtype=torch.int32, device=device)
        longest = int(starts.diff().max())
        packed = PackedSeqParams("thd", starts, starts, max_seqlen_q=longest, max_seqlen_kv=longest)
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(0, config.architecture().vocab_size, (2, 1, begins[-1]), generator=generator).to(device)
        positions = torch.cat([torch.arange(int(length)) for length in starts.cpu().diff()])[None].to(device)
        found = policy(drawn[0], positions, None, labels=drawn[1], packed_seq_params=packed)
        found[0].sum().backward()
        named = {"logprob": found[0], **{name: weight.grad for name, weight in policy.named_parameters()}}
        return {name: value.detach().float().cpu() for name, value in named.items()}
    finally:
        launch.shutdown()


if __name__ == "__main__":
    main()
