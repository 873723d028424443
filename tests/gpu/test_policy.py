"""The policy on a GPU: log-probs against transformers, the op against fp64, engine against trainer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_lwz.config import validate
from megatron_lwz.distributed import launch
from megatron_lwz.kernels.linear_logprob import linear_logprob
from megatron_lwz.metrics import read_metrics
from megatron_lwz.models.hf.load import HfFolder, load_policy
from megatron_lwz.models.qwen2 import build_policy
from tests.support.grpo_runs import ROOT, command, variables, write_example
from tests.support.layout_oracle import write_tiny_qwen

pytestmark = pytest.mark.gpu


def test_op_equals_fp64_autograd() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 256).cuda(), torch.randn(5120, 256).cuda() * 0.1
    labels = torch.randint(0, 5000, (300,)).cuda()
    inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    logprob, _, _ = linear_logprob(*inputs, labels, vocab_size=5000)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    expected = (exact[0] @ exact[1][:5000].t()).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(logprob.double(), expected, atol=1e-4, rtol=0)
    for ours, reference in zip(
        torch.autograd.grad(logprob.sum(), inputs), torch.autograd.grad(expected.sum(), exact), strict=True
    ):
        assert (ours.double() - reference).norm() / reference.norm() < 1e-3  # TF32 may be on


def test_policy_logprobs_equal_transformers(tmp_path: Path) -> None:
    write_tiny_qwen(tmp_path, tied=False)
    oracle = load_file(tmp_path / "oracle.tensors")
    launch.initialize(validate({"model": {"hf": str(tmp_path)}, "training": {"precision": "fp32"}}))
    try:
        (policy,) = build_policy(validate({"model": {"hf": str(tmp_path)}, "training": {"precision": "fp32"}}))
        load_policy([policy], HfFolder(tmp_path))
        tokens = oracle["tokens.5"].cuda()
        positions = torch.arange(len(tokens) - 1).cuda()
        with torch.no_grad():
            found = policy(tokens[None, :-1], positions[None], None, labels=tokens[None, 1:])
        torch.testing.assert_close(found[0].cpu(), oracle["logprob.5"], atol=1e-3, rtol=0)
    finally:
        launch.shutdown()


def test_main_job_trains_on_one_gpu(tmp_path: Path) -> None:
    config = write_example(tmp_path, training={"precision": "bf16"})
    environment = variables() | {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    done = subprocess.run(command(config), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 4 and all(row["grad_norm"] > 0 for row in rows)
