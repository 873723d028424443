"""peft's LoRA on transformers' model in a few lines, and what torch computes with it: the oracle of the adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_lwz.config.sections import LoraSection
from tests.support.tiny_qwen2 import QWEN3, write_tiny_qwen2

LENGTHS = (33, 18, 29, 7)
PACKS = [[0, 1], [2, 3]]
LEARNING_RATE = 1e-2
VOCABULARY = 101
CASES: dict[str, dict[str, Any]] = {
    "all": {"rank": 4, "alpha": 8, "ranks": {"q_proj": 2, "down_proj": 6}, "alphas": {"up_proj": 3.5}},
    "some": {"rank": 3, "alpha": 6, "modules": ["q_proj", "v_proj", "up_proj"]},
    "mlp": {"rank": 3, "alpha": 6, "modules": ["gate_proj", "down_proj"]},
}
"""Every module, some of fused layers, and none of the first layer's attention: nothing before them has a gradient."""
MODELS: dict[str, dict[str, Any]] = {"all": {}, "some": QWEN3, "mlp": {"tie_word_embeddings": True}}


class Adapted(torch.nn.Module):
    """base(x) + alpha / rank · B(A(x)), as peft computes it."""

    def __init__(self, base: torch.nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base_layer, self.scale = base, scale
        self.lora_A = torch.nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = torch.nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.scale * self.lora_B(self.lora_A(x))


def adapted(model: Any, lora: LoraSection) -> Any:
    """The model with random adapters, frozen below them."""
    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        parent, _, name = path.rpartition(".")
        if isinstance(module, torch.nn.Linear) and lora.rank_of(name):
            setattr(model.get_submodule(parent), name, Adapted(module, lora.rank_of(name), lora.scale_of(name)))
    with torch.no_grad():
        for name, weight in adapters(model).items():
            weight.normal_(0, 0.3 if "lora_A" in name else 0.1)
    return model


def adapters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapters' weights, under peft's names."""
    return {f"base_model.model.{name}": weight for name, weight in model.named_parameters() if ".lora_" in name}


def write_oracle(folder: Path, case: str) -> None:
    """Writes the model, `given.tensors` (adapters, tokens, weights of the loss) and `oracle.tensors`."""
    model = write_tiny_qwen2(folder, seed=5, **MODELS[case])
    sequences = {f"tokens.{i}": torch.randint(0, VOCABULARY, (length,)) for i, length in enumerate(LENGTHS)}
    weights = {f"weights.{i}": torch.randn(length - 1) for i, length in enumerate(LENGTHS)}
    given, oracle = sequences | weights, {}
    base = [logprobs(model, given[f"tokens.{i}"]) for i in range(len(LENGTHS))]
    oracle |= {f"base.{i}": found.detach() for i, found in enumerate(base)}
    trained = adapters(adapted(model, LoraSection.model_validate(CASES[case])))
    save_file(given | {name: weight.detach().clone() for name, weight in trained.items()}, folder / "given.tensors")
    optimizer = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    losses, norms = [], []
    for step in range(3):
        optimizer.zero_grad()
        values = [logprobs(model, given[f"tokens.{i}"]) for i in range(len(LENGTHS))]
        total = -sum((value * given[f"weights.{i}"]).sum() for i, value in enumerate(values)) / tokens()
        total.backward()
        if step == 0:
            oracle |= {f"logprob.{i}": value.detach() for i, value in enumerate(values)}
            oracle |= {f"gradient.{name}": weight.grad.clone() for name, weight in trained.items()}
        losses.append(total.detach())
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), 1.0))
        optimizer.step()
    save_file(oracle | {"loss": torch.stack(losses), "grad_norm": torch.stack(norms)}, folder / "oracle.tensors")


def tokens() -> int:
    """Of all sequences, that have a log-prob."""
    return sum(length - 1 for length in LENGTHS)


def logprobs(model: Any, sequence: Tensor) -> Tensor:
    """[length − 1]"""
    logits = model(sequence[None, :-1]).logits[0]
    return torch.log_softmax(logits, -1).gather(1, sequence[1:, None])[:, 0]
