"""Combinations that cannot work are refused before anything starts."""

import pytest

from megatron_lwz.config import validate
from megatron_lwz.errors import ConfigError
from megatron_lwz.training.weight_sync.nccl import nccl_joining

VLLM = {"engine": "vllm", "urls": ["http://127.0.0.1:8000"]}


def checked(rollout=None, transport="disk", data=None, **sections):
    tree = {"data": {"prompts": "p.jsonl"} | (data or {}), "rollout": rollout or {}}
    tree |= {"weight_sync": {"transport": transport}, "training": {"tokens_per_micro_batch": 40_000}}
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    config = validate(tree)
    config.check_grpo()
    return config


def test_what_works():
    assert checked().weight_sync.transport == "disk"
    assert checked(VLLM, "nccl").weight_sync.bucket_mib == 1024
    assert checked({"colocated": True}).rollout.colocated
    assert checked(VLLM | {"colocated": True}, evaluation={"concurrent": False}).rollout.colocated


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        (r"weight_sync.transport.*needs rollout.engine: vllm", {"transport": "nccl"}),
        (r"weight_sync.transport.*cannot share a GPU", {"rollout": VLLM | {"colocated": True}, "transport": "nccl"}),
        (r"rollout.max_staleness.*cannot write while it trains", {"rollout": {"colocated": True, "max_staleness": 1}}),
        (
            r"evaluation.concurrent.*no GPU for another engine",
            {"rollout": {"colocated": True}, "data": {"held_out_prompts": "h.jsonl"}},
        ),
        (
            r"training.accumulate_groups.*cannot write while it trains",
            {"rollout": {"colocated": True}, "training": {"accumulate_groups": 2, "prompts_per_step": 8}},
        ),
    ],
)
def test_what_does_not(said, arguments):
    with pytest.raises(ConfigError, match=said) as caught:
        checked(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "section", [{"bucket_mib": 0}, {"buffers": 0}, {"timeout": 0}, {"transport": "ipc"}, {"address": "10.0.0.1"}]
)
def test_values_out_of_range_and_unknown_keys_are_named(section):
    with pytest.raises(ConfigError, match=rf"weight_sync\.{next(iter(section))}"):
        validate({"weight_sync": section})


def test_nccl_without_a_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr("megatron_lwz.distributed.platform.has_gpu", lambda: False)
    with pytest.raises(ConfigError, match=r"weight_sync.transport.*needs a GPU on rank 0; use disk"):
        nccl_joining(checked(VLLM, "nccl").weight_sync)
