"""The policy on one rank: log-probs against its own logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_lwz.config import validate
from megatron_lwz.distributed.launch import initialize, shutdown
from megatron_lwz.errors import CheckpointError
from megatron_lwz.models.hf.load import RandomInit, load_policy
from megatron_lwz.models.logprobs import PolicyModel
from megatron_lwz.models.qwen import build_policy
from megatron_lwz.types import IGNORED_LABEL

LENGTHS = (5, 9, 1)


@pytest.fixture(scope="module")
def policy() -> Iterator[PolicyModel]:
    architecture = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 101,
        "initializer_range": 0.5,
    }
    config = validate({"model": {"architecture": architecture}, "training": {"precision": "fp32"}})
    initialize(config)
    (model,) = build_policy(config)
    load_policy([model], RandomInit(config.architecture(), seed=3))
    yield model
    shutdown()


def _forward(policy: PolicyModel, tokens: Tensor, labels: Tensor | None) -> Tensor:
    starts = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    packed = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=starts, cu_seqlens_kv=starts, max_seqlen_q=9, max_seqlen_kv=9
    )
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return policy(tokens, positions, None, labels=labels, packed_seq_params=packed)


def test_log_probs_are_those_of_the_true_vocabulary_at_the_temperature(policy: PolicyModel) -> None:
    torch.manual_seed(0)
    tokens, labels = torch.randint(0, 101, (2, 1, sum(LENGTHS)))
    labels[0, 3:6] = IGNORED_LABEL
    logits = _forward(policy, tokens, None)[0, :, : policy.true_vocab_size]
    assert logits.shape == (15, 101)
    for temperature in (1.0, 0.7):
        policy.temperature = temperature
        logprob, entropy, lse = _forward(policy, tokens, labels)
        expected = torch.log_softmax(logits / temperature, -1)
        kept = labels[0] != IGNORED_LABEL
        torch.testing.assert_close(logprob[kept], expected[kept].gather(1, labels[0, kept][:, None])[:, 0])
        torch.testing.assert_close(entropy[kept], -(expected.exp() * expected).sum(-1)[kept])
        torch.testing.assert_close(lse[kept], torch.logsumexp(logits / temperature, -1)[kept])
        assert not torch.stack([logprob, entropy, lse])[:, ~kept].any()
    policy.temperature = 1.0


def test_a_packed_document_equals_the_same_document_alone(policy: PolicyModel) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 101, (1, sum(LENGTHS)))
    packed = _forward(policy, tokens, None)
    start = 0
    for length in LENGTHS:
        alone = policy(tokens[:, start : start + length], torch.arange(length)[None], None)
        # torch's attention on AVX-512 approximates the exponential; a look into a neighbour would change 0.01 and more
        torch.testing.assert_close(alone[0], packed[0, start : start + length], rtol=1e-4, atol=1e-4)
        start += length


def test_padding_rows_get_no_gradient(policy: PolicyModel) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 101, (1, sum(LENGTHS)))
    weight = policy.output_weight()
    (gradient,) = torch.autograd.grad(_forward(policy, tokens, tokens)[0].sum(), weight)
    assert weight.shape[0] == 128
    assert gradient[:101].any()
    assert not gradient[101:].any()


class _Poisoned(RandomInit):
    """Random weights with one value that is not finite."""

    place = "some folder"
    value = float("nan")

    def read(self, name: str, *arguments: Any, **options: Any) -> Tensor:
        found = super().read(name, *arguments, **options)
        if name == "model.layers.1.mlp.up_proj.weight":
            found[0, 3] = self.value
        return found


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_named(
    policy: PolicyModel, value: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_Poisoned, "value", value)
    said = "some folder: tensor model.layers.1.mlp.up_proj.weight holds NaN or infinite values"
    with pytest.raises(CheckpointError, match=said):
        load_policy([policy], _Poisoned(policy.arch, seed=3), finite=True)
    assert not caplog.text
    load_policy([policy], _Poisoned(policy.arch, seed=3))
    assert said in caplog.text
    caplog.clear()
    load_policy([policy], RandomInit(policy.arch, seed=3), finite=True)
    assert not caplog.text
