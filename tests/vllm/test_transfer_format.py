"""What goes to the engines over NCCL is what vLLM's own code expects: requests, and where buckets are cut."""

from __future__ import annotations

import json
import random
import subprocess

import pytest
import torch

from megatron_lwz.config import Config
from megatron_lwz.distributed import environment
from megatron_lwz.training.weight_sync.buckets import Buckets, cut
from megatron_lwz.training.weight_sync.sender import wire_format
from tests.vllm.conftest import PYTHON

pytestmark = pytest.mark.vllm

THEIRS = """
import json, sys, torch
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.packed_tensor import pack_tensors
asked = json.load(sys.stdin)
info = NCCLWeightTransferInitInfo(**asked["init"])
told = NCCLWeightTransferUpdateInfo(**asked["update"])
cuts = []
for case in asked["cases"]:
    tensors = iter([(name, torch.zeros(size, dtype=torch.uint8)) for name, size in case["sizes"].items()])
    cuts.append([])
    while (chunk := pack_tensors(tensors, lambda item: item[1], case["limit"])) is not None:
        cuts[-1].append(chunk.names)
dtypes = [str(getattr(torch, name)) for name in told.dtype_names]
print(json.dumps({"id": list(info.nccl_unique_id_bytes), "dtypes": dtypes, "cuts": cuts}))
"""


def test_vllm_reads_our_requests_and_cuts_buckets_where_we_do() -> None:
    rng = random.Random(0)
    sizes = [{f"t{i}": rng.randint(1, 60) for i in range(rng.randint(1, 30))} for _ in range(200)]
    cases = [{"sizes": each, "limit": rng.randint(0, 150)} for each in sizes]
    plan = Buckets({"a": (2, 3), "b": (4,)}, torch.bfloat16, 100)
    asked = {
        "init": wire_format(bytes(range(128)), 3, plan, Config().weight_sync) | {"rank_offset": 1},
        "update": plan.describe(),
        "cases": cases,
    }
    env = environment.child_environment(VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [str(PYTHON), "-c", THEIRS], input=json.dumps(asked), env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["id"] == list(range(128)) and found["dtypes"] == ["torch.bfloat16"] * 2
    assert found["cuts"] == [cut(case["sizes"], case["limit"]) for case in cases]
