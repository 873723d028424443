"""A checkpoint is loaded only into the model that it belongs to, also where all shapes agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_lwz.config import Architecture, validate
from megatron_lwz.config.sections import LoraSection
from megatron_lwz.distributed.launch import initialize, shutdown
from megatron_lwz.errors import CheckpointError
from megatron_lwz.training.same_model import check_same_base, check_same_model

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
}


@pytest.fixture(autouse=True, scope="module")
def one_rank() -> Iterator[None]:
    initialize(validate({"model": {"architecture": SIZES}}))
    yield
    shutdown()


def _state(folder: Path) -> Path:
    (folder / "state.json").write_text(json.dumps({"architecture": Architecture(**SIZES).model_dump()}))
    return folder


def _config(folder: Path) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"architecture": SIZES}}))
    return folder


def _run(folder: Path) -> Path:
    checkpoint = _config(folder) / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    return checkpoint


@pytest.mark.parametrize("written", [_state, _config, _run])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"max_position_embeddings": 99, "initializer_range": 0.5, "head_dim": 8, "head": "scalar"}, None),
        ({"rope_theta": 5000.0}, "rope_theta is 1000000.0 there, 5000.0 in this config"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-06 there, 1e-05 in this config"),
        ({"num_attention_heads": 8}, "num_attention_heads is 4 there, 8 in this config"),
        ({"head_dim": 16}, "head_size is 8 there, 16 in this config"),
    ],
)
def test_another_function_of_the_same_tensors_is_refused(
    written: Any, change: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    checkpoint = written(tmp_path)
    arch = Architecture(**(SIZES | change))
    if said is None:
        check_same_model(arch, checkpoint)
        return
    with pytest.raises(CheckpointError) as caught:
        check_same_model(arch, checkpoint)
    assert said in str(caught.value) and str(checkpoint) in str(caught.value)


def test_a_checkpoint_that_names_no_model_is_accepted_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_same_model(Architecture(**SIZES), tmp_path)
    assert "does not say which model it is" in caplog.text


class Policy(torch.nn.Module):
    """What the check reads of a policy."""

    def __init__(self, base: str | None, **lora: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.base, self.lora = base, LoraSection(**lora) if lora else None


ADAPTER = {"lora": LoraSection(rank=4).model_dump(mode="json"), "base": "abc", "dtype": "fp32"}


@pytest.mark.parametrize(
    ("saved", "policy", "said"),
    [
        (ADAPTER, Policy("abc", rank=4), None),
        (None, Policy(None), None),
        (ADAPTER, Policy("abc", rank=8), "its adapter has lora.rank 4, this config 8"),
        (ADAPTER, Policy("abc", rank=4, modules=["q_proj"]), "its adapter has lora.modules"),
        (ADAPTER, Policy("other", rank=4), "belongs to another base model (checksum abc in fp32, that of"),
        (ADAPTER, Policy(None), "holds a LoRA adapter alone: take the config.yaml of its run"),
        (None, Policy("abc", rank=4), "holds a whole model, no LoRA adapter: with lora.rank name the frozen"),
        (ADAPTER | {"dtype": "int8"}, Policy("abc", rank=4), "state.json is damaged: its 'adapter' is none"),
        (5, Policy("abc", rank=4), "state.json is damaged: its 'adapter' is none"),
    ],
)
def test_an_adapter_is_loaded_over_its_own_base_alone(
    saved: Any, policy: Policy, said: str | None, tmp_path: Path
) -> None:
    record = {"architecture": Architecture(**SIZES).model_dump()} | ({} if saved is None else {"adapter": saved})
    (tmp_path / "state.json").write_text(json.dumps(record))
    if said is None:
        check_same_base([policy], tmp_path)
        return
    with pytest.raises(CheckpointError) as caught:
        check_same_base([policy], tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
