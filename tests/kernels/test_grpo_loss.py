"""What the fused GRPO loss becomes on sm_90. (That it equals its definition: test_interpreted.)"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from megatron_lwz.kernels.grpo_loss import kernels
from megatron_lwz.kernels.grpo_loss.launch import SEQUENCE_SUMS_LAUNCH, TOKEN_LOSS_LAUNCH
from tests.kernels.ahead_of_time import MachineCode, compile_ahead_of_time

VECTORS = ("old", "behaviour", "reference", "advantages", "weights", "ratio_sums", "mismatch_sums")
NUMBERS = ("low", "high", "dual_clip", "kl_coefficient", "entropy_coefficient", "cap", "lowest")
TOKEN_LOSS = (
    dict.fromkeys(("statistics", "entropies", *VECTORS, "out", "partials"), "*fp32")
    | dict.fromkeys(("rows", "sequence_ids"), "*i64")
    | dict.fromkeys(("n", "tokens", "sequences", "stride"), "i32")
    | dict.fromkeys(NUMBERS, "fp32")
)
SEQUENCE_SUMS = (
    dict.fromkeys(("logprob", "old", "behaviour", "weight", "ratio_sums", "mismatch_sums"), "*fp32")
    | {"sequence_ids": "*i64"}
    | dict.fromkeys(("tokens", "sequences"), "i32")
)
NO_SEQUENCES = dict.fromkeys(("entropies", "sequence_ids", "ratio_sums", "mismatch_sums"))
EVERYTHING = {"OBJECTIVE": "clip", "MISMATCH": "mask", "KL": "k3", "KL_IMPORTANCE": True}
DEFAULTS = {"OBJECTIVE": "clip", "MISMATCH": "truncate", "KL": "none", "KL_IMPORTANCE": True}
OFF = dict.fromkeys(("old", "reference", "dual_clip", "entropy_coefficient"))

KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any], int]] = {
    "one_shard": (kernels.token_loss, TOKEN_LOSS, {**NO_SEQUENCES, **EVERYTHING, "SHARDS": 1}, 40),
    "eight_shards": (kernels.token_loss, TOKEN_LOSS, {**NO_SEQUENCES, **EVERYTHING, "SHARDS": 8}, 64),
    "defaults": (kernels.token_loss, TOKEN_LOSS, {**NO_SEQUENCES, **DEFAULTS, **OFF, "SHARDS": 8}, 64),
    "cispo": (
        kernels.token_loss,
        TOKEN_LOSS,
        {**NO_SEQUENCES, **EVERYTHING, "OBJECTIVE": "cispo", "dual_clip": None, "SHARDS": 8},
        64,
    ),
    "from_logprobs": (kernels.token_loss, TOKEN_LOSS, {"rows": None, **EVERYTHING, "SHARDS": 0}, 40),
    "sequence_sums": (kernels.sequence_sums, SEQUENCE_SUMS, {}, 128),
}
"""Kernel, argument types, constants, and the registers it may take (per thread)."""


@cache
def compiled(name: str) -> MachineCode:
    kernel, types, constants, _ = KERNELS[name]
    launch = SEQUENCE_SUMS_LAUNCH if kernel is kernels.sequence_sums else TOKEN_LOSS_LAUNCH
    blocks = {option: value for option, value in launch.items() if option != "num_warps"}
    return compile_ahead_of_time(kernel, types, constants | blocks, num_warps=launch["num_warps"])


@pytest.mark.parametrize("name", KERNELS)
def test_registers_no_spills_and_no_atomics(name: str) -> None:
    code = compiled(name)
    assert code.local_bytes == 0 and not code.count(r"\b(LDL|STL|ATOM|ATOMG|RED)\b")
    assert code.registers <= KERNELS[name][3]


def test_options_that_are_off_are_not_compiled() -> None:
    """The default loss loads neither old nor reference log-probs and is shorter."""
    assert compiled("eight_shards").count(r"\bLDG\b") - compiled("defaults").count(r"\bLDG\b") == 2
    assert len(compiled("defaults").instructions) < len(compiled("eight_shards").instructions)
