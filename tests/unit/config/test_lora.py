"""Which modules get an adapter, with which factor; what makes no sense is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_lwz.config import validate
from megatron_lwz.config.flops import training_passes
from megatron_lwz.config.lora import MODULES
from megatron_lwz.errors import ConfigError

MODEL = {"preset": "qwen2.5-0.5b"}
GRPO = {"data": {"prompts": "p.jsonl"}, "training": {"tokens_per_micro_batch": 32768}}


def test_it_is_off_by_default() -> None:
    config = validate({"model": MODEL})
    assert config.adapter() is None and training_passes(config) == 3


def test_ranks_and_factors_are_those_of_a_module() -> None:
    tree = {"rank": 8, "alpha": 16, "modules": "q_proj,up_proj", "ranks": {"up_proj": 4}, "alphas": {"up_proj": 2}}
    config = validate({"model": MODEL, "lora": tree})
    lora = config.adapter()
    assert lora is not None and training_passes(config) == 2
    assert {module: lora.rank_of(module) for module in MODULES} == dict.fromkeys(MODULES, 0) | {
        "q_proj": 8,
        "up_proj": 4,
    }
    assert lora.scale_of("q_proj") == 2 and lora.scale_of("up_proj") == 0.5


def test_a_reward_model_has_none() -> None:
    assert validate({"model": MODEL | {"head": "scalar"}, "lora": {"rank": 8}}).adapter() is None


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": 8, "modules": ["lm_head"]}, "lora.modules"),
        ({"rank": 8, "modules": []}, "lora.modules"),
        ({"rank": 8, "ranks": {"q_proj": 0}}, "lora.ranks"),
        ({"ranks": {"q_proj": 8}}, "ranks is given, but rank 0 turns LoRA off: set rank"),
        (
            {"rank": 8, "modules": ["q_proj"], "alphas": {"k_proj": 8}},
            "alphas names k_proj, which is not among modules",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(lora: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"lora": lora})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_grpo_asks_for_a_base_that_the_run_begins_with_and_for_a_correction_of_rounding() -> None:
    tree = {"model": MODEL, "lora": {"rank": 8}, "checkpoint": {"load": "sft"}, **GRPO}
    validate(tree | {"grpo": {"kl_coefficient": 0.0}}).check_grpo()
    taught = {"kl_coefficient": 1.0, "kl_placement": "reward", "teacher": "models/t", "zero_variance": "keep"}
    validate(tree | {"grpo": taught}).check_grpo()
    with pytest.raises(ConfigError, match=r"lora\.rank.*merged in bf16, lose small updates: set grpo\.mismatch"):
        validate(tree | {"grpo": {"mismatch": "none"}}).check_grpo()
    with pytest.raises(ConfigError, match=r"checkpoint\.load.*compares with the model without a LoRA adapter"):
        validate(tree | {"grpo": {"kl_coefficient": 0.1, "kl_estimator": "k3"}}).check_grpo()
