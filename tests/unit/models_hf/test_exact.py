"""The fp64 reference against transformers' modules, in which the two that always compute in fp32 compute in fp64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from megatron_lwz.config import read_hf_architecture
from megatron_lwz.models.hf import HfFolder, exact
from megatron_lwz.models.hf.exact import ExactModel
from tests.support.tiny_qwen2 import write_tiny_qwen2

YARN = {
    "rope_type": "yarn", "rope_theta": 300.0, "factor": 4.0, "original_max_position_embeddings": 4,
}  # fmt: skip
TEXTS = [torch.randint(101, (length,), generator=torch.Generator().manual_seed(length)) for length in (2, 33, 60)]


class Norm(torch.nn.Module):
    """RMSNorm that keeps the precision of its input."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)


class Rotary(torch.nn.Module):
    """Angles of the rotary embedding in fp64."""

    def __init__(self, config) -> None:
        super().__init__()
        self.size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.theta = config.rope_parameters["rope_theta"]
        self.factor = config.rope_parameters.get("factor")

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        speeds = 1 / self.theta ** (torch.arange(0, self.size, 2, dtype=torch.float64) / self.size)
        scale = 1.0
        if self.factor is not None:  # with YARN the first pair alone turns often enough to keep its speed
            speeds = torch.cat((speeds[:1], speeds[1:] / self.factor))
            scale = 0.1 * math.log(self.factor) + 1
        angles = positions[..., None].double() * speeds
        return torch.cat((angles, angles), -1).cos() * scale, torch.cat((angles, angles), -1).sin() * scale


@pytest.fixture
def in_fp64(monkeypatch: pytest.MonkeyPatch):
    """Loads a folder into transformers' model, all of it in fp64."""
    for modeling, title in ((modeling_qwen2, "Qwen2"), (modeling_qwen3, "Qwen3")):
        monkeypatch.setattr(modeling, f"{title}RMSNorm", Norm)
        monkeypatch.setattr(modeling, f"{title}RotaryEmbedding", Rotary)
    return lambda folder: AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").double().eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        {"head_dim": 12, "num_key_value_heads": 4, "rms_norm_eps": 1e-2},
        {"num_key_value_heads": 1, "num_hidden_layers": 1},
        {"model_type": "qwen3", "head_dim": 12},
        {"model_type": "qwen3", "head_dim": 12, "rope_parameters": YARN},
    ],
    ids=["untied", "tied", "own head size", "one key-value head", "Qwen3", "Qwen3 with YaRN"],
)
def test_log_probs_are_exact(tmp_path: Path, in_fp64, monkeypatch, changes: dict) -> None:
    write_tiny_qwen2(tmp_path, **changes)
    monkeypatch.setattr(exact, "_HEAD_ROWS", 17)  # several pieces, the last one shorter
    found = ExactModel(HfFolder(tmp_path), read_hf_architecture(tmp_path)).logprobs(TEXTS)
    model = in_fp64(tmp_path)
    for text, logprobs in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            expected = model(text[None]).logits[0, :-1].log_softmax(-1).gather(-1, text[1:, None])[:, 0]
        assert logprobs.dtype == torch.float64
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-11)


def test_scores_are_exact(tmp_path: Path, in_fp64) -> None:
    write_tiny_qwen2(tmp_path)
    model, head = in_fp64(tmp_path), torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    folder = tmp_path / "scalar"
    folder.mkdir()
    source = HfFolder(tmp_path)
    kept = {name: source.read(name, ()) for name in source.names() if name != "lm_head.weight"}
    save_file(kept | {"score.weight": head}, folder / "model.safetensors")
    arch = read_hf_architecture(tmp_path).model_copy(update={"head": "scalar"})
    found = ExactModel(HfFolder(folder), arch).scores(TEXTS)
    with torch.no_grad():
        expected = torch.stack(
            [(model.model(text[None]).last_hidden_state[0, -1] @ head[0].double()) for text in TEXTS]
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
