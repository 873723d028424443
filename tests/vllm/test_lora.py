"""An exported adapter over its base in a real vLLM: the log-probs are those of the merged export."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch

from megatron_lwz.config import validate
from megatron_lwz.distributed import launch
from megatron_lwz.models.hf import export_policy
from megatron_lwz.models.hf.adapter import export_adapter
from megatron_lwz.training.initial import initial_policy
from tests.support.lora_oracle import logprobs
from tests.vllm.conftest import TOKEN, vllm_server
from tests.vllm.served_model import write_served_model

pytestmark = pytest.mark.vllm

LORA = {"rank": 8, "alpha": 16, "ranks": {"q_proj": 4, "down_proj": 16}, "alphas": {"up_proj": 24}}
TOKENS = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(3))


def write_exports(root: Path) -> None:
    """Writes `base`, a model with a random adapter as `merged`, and the `adapter`."""
    write_served_model(root / "base")
    config = validate({"model": {"hf": str(root / "base")}, "training": {"precision": "fp32"}, "lora": LORA})
    launch.initialize(config)
    try:
        policies = initial_policy(config)
        with torch.no_grad():
            for name, weight in policies[0].named_parameters():
                if name.endswith(".B"):
                    weight.normal_(0, 0.2)
        export_policy(policies, root / "merged", config_files_from=root / "base")
        export_adapter(policies, root / "adapter", base=str(root / "base"))
    finally:
        launch.shutdown()


def test_vllm_reads_the_adapter_with_ranks_and_factors_of_single_modules(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_exports(tmp_path)
    options = ("--enable-lora", "--max-lora-rank", "16", "--lora-modules", f"tuned={tmp_path / 'adapter'}")
    with vllm_server(tmp_path / "base", tmp_path / "vllm.log", *options) as url:
        found = {name: asked(url, name) for name in ("policy", "tuned")}
    for name, folder in (("policy", "base"), ("tuned", "merged")):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.float32)
        with torch.no_grad():
            torch.testing.assert_close(found[name], logprobs(model, TOKENS), rtol=0, atol=1e-4)
    assert (found["tuned"] - found["policy"]).abs().max() > 1


def asked(url: str, model: str) -> torch.Tensor:
    """vLLM's log-probs of TOKENS but the first."""
    body = {"model": model, "prompt": TOKENS.tolist(), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    with urlopen(Request(f"{url}/v1/completions", json.dumps(body).encode(), headers), timeout=120) as reply:
        rows = json.load(reply)["choices"][0]["prompt_logprobs"][1:]
    return torch.tensor([row[str(int(token))]["logprob"] for row, token in zip(rows, TOKENS[1:], strict=True)])
