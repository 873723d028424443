"""What the tests rehearse: a GRPO step in the layouts that differ most, each other stage once, and planted faults.

`python tools/rehearse.py` rehearses every stage in every layout.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_lwz.rehearsal.case import Case
from megatron_lwz.rehearsal.small import BY_NAME, DECODINGS

_ALL, _TP2 = BY_NAME["TP2 CP2 PP2 DP2 overlap full"], BY_NAME["TP2"]
_SEQUENCES = {"ratio": "sequence", "mismatch": "sequence", "kl_coefficient": 0.1, "entropy_coefficient": 0.01}

ONE_GPU = BY_NAME["one GPU"].case("grpo", 0)
TENSOR = _TP2.case("grpo", 0)
CONTEXT = BY_NAME["CP2"].case("grpo", 1, "by sequence", grpo=_SEQUENCES, training={"updates_per_batch": 2})
"""Also: ratios of whole sequences, a reference policy, an entropy term, two optimizer steps."""
_TEACHER = Path(__file__).parents[1] / "data" / "teacher"
_QWEN3 = {
    "architecture": {
        "model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 1000,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 8192},
    }
}  # fmt: skip
TAUGHT = _TP2.case(
    "grpo", 0, "Qwen3 with YaRN and a teacher", model=_QWEN3,
    grpo={"teacher": str(_TEACHER), "kl_coefficient": 1.0, "kl_placement": "reward", "zero_variance": "keep"},
)  # fmt: skip
ALL = _ALL.case("grpo", 15)
GRPO_CASES = [ONE_GPU, TENSOR, CONTEXT, BY_NAME["PP2 VPP2"].case("grpo", 1), TAUGHT, ALL]
DECODE, DECODE_SHARED = DECODINGS
STAGE_CASES = [
    _TP2.case("sft", 0),
    _TP2.case("sft", 0, "in fp32", training={"precision": "fp32"}),
    _TP2.case("reward_model", 0),
    _TP2.case("dpo", 0),
    _TP2.case("buckets", 0),
    _ALL.case("pretrain", 15),
    _ALL.case("score", 0),
    DECODE,
    DECODE_SHARED,
    _ALL.case("export", 0),
]
LORA = replace(
    _ALL.case("grpo", 15, "lora", lora={"rank": 8}, grpo={"kl_coefficient": 0.1}),
    then=("export", "buckets", "checkpoint"),
)
CASES = [*GRPO_CASES, *STAGE_CASES, LORA]

DRAWS = "megatron_lwz/models/decoding_sampling.py:draw", "megatron_lwz/models/decoding.py:_draw"
"""Where a decode step waits: noise to the GPU, and tokens from it."""

FAULTS = {
    "host_tensor_in_an_operation": r"two different devices|at least two devices",
    "host_tensor_in_a_kernel": r"kernel grpo_loss\.token_loss, argument weights: a host tensor",
    "wrong_dtype_in_a_kernel": r"kernel layers\.rotate_heads, argument cos: torch\.bfloat16 must be torch\.float32",
    "wrong_dtype_in_a_product": r"a product of torch\.float32 and torch\.bfloat16",
    "wrong_grid": r"kernel layers\.swiglu_forward: grid \(512, 1, 1\) must be \(512, 2, 1\)",
    "missing_argument": r"kernel layers\.swiglu_forward: argument BLOCK is missing",
}
"""Function of faults.py → what the rehearsal must say."""


def with_fault(name: str) -> Case:
    """The smallest case, with a fault of faults.py in the product."""
    return Case(f"fault {name}", ONE_GPU.config, fault=f"tests.rehearsal.faults:{name}")


UNRECORDABLE = replace(
    DECODE, name="fault wait_in_a_recorded_step", fault="tests.rehearsal.faults:wait_in_a_recorded_step"
)
FAULT_CASES = [*(with_fault(name) for name in (*FAULTS, "extra_wait")), UNRECORDABLE]

CHECKPOINT = _TP2.case("checkpoint", 0)
ENGINE_CONTEXT = BY_NAME["CP2"].case("grpo", 1)
ENGINE_CASES = [
    TENSOR,
    TAUGHT,
    ENGINE_CONTEXT,
    _TP2.case("buckets", 0),
    CHECKPOINT,
    BY_NAME["PP2"].case("checkpoint", 1),
]
"""With Transformer Engine's layers, attention and Adam."""

ENGINE_FAULTS = {
    "host_angles": r"fused_rope_forward of Transformer Engine: a host tensor",
    "strided_angles": r"fused_rope of Transformer Engine: .* must be contiguous",
    "long_positions": r"fused_rope: a pack .* torch\.int64",
}
"""Function of faults.py → what the stand-in must say."""
